use std::path::PathBuf;

use super::*;

#[test]
fn every_command_has_a_page() {
    let directory = tempfile::tempdir().unwrap();
    man(&ManArgs { directory: directory.path().to_owned() }).unwrap();
    for page in ["coeval", "coeval-host", "coeval-snapshot-create", "coeval-doctor", "coeval-group-show"] {
        let text = fs::read_to_string(directory.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    assert!(!directory.path().join("coeval-man.1").exists());
}

/// A command and those below it, as docs/reference.md has them.
fn section(command: &clap::Command, name: &str) -> String {
    let about = |text: Option<&clap::builder::StyledStr>| text.map(ToString::to_string).unwrap_or_default();
    let mut text = String::new();
    let below: Vec<_> =
        command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help").collect();
    if below.is_empty() {
        let positional: String = command
            .get_positionals()
            .map(|argument| {
                let value = argument.to_string();
                format!(" {}", value.trim_matches(['<', '>']))
            })
            .collect();
        text += &format!("### `{name}{positional}`\n\n{}.\n", about(command.get_about()));
        let remote = command.get_arguments().any(|argument| argument.get_id() == "cert");
        let ours = ["cert", "key", "ca", "insecure", "server"];
        let options = command.get_arguments().filter(|argument| {
            let id = argument.get_id().as_str();
            let elsewhere = ["help", "version"].contains(&id) || (remote && ours.contains(&id));
            !argument.is_positional() && !argument.is_hide_set() && !elsewhere
        });
        let mut rows = String::new();
        for argument in options {
            let value = argument.get_num_args().is_some_and(|range| range.takes_values());
            let value =
                if value { argument.get_value_names().map(|names| format!(" {}", names[0])) } else { None };
            let long = argument.get_long().unwrap_or_default();
            let default = argument.get_default_values().first().and_then(|value| value.to_str());
            let default = default.filter(|_| value.is_some()).map(|value| format!(" (default {value})"));
            let help = about(argument.get_help());
            rows += &format!(
                "| `--{long}{}` | {}{} |\n",
                value.unwrap_or_default(),
                help.replace('|', "\\|"),
                default.unwrap_or_default()
            );
        }
        if !rows.is_empty() {
            text += &format!("\n| option | |\n| --- | --- |\n{rows}");
        }
        if remote {
            text += "\nTalks to the server (above).\n";
        }
        text += "\n";
    }
    for sub in below {
        text += &section(sub, &format!("{name} {}", sub.get_name()));
    }
    text
}

fn reference() -> String {
    let mut command = Cli::command();
    command.build();
    let configuration = |kind: &str, text: &str| {
        format!("### `coeval {kind}`: `/etc/coeval/{kind}.toml`\n\n```toml\n{}```\n\n", text)
    };
    format!(
        "# Reference\n\n\
         Written from the program itself; a test holds it against that (`COEVAL_WRITE_DOCS=1` writes it anew).\n\n\
         ## Command line\n\n\
         Results go to stdout, errors to stderr as one sentence that says what to do. The status is 0 if all is well, 1 if not, \
         and 2 if the command line means nothing.\n\n\
         Commands that talk to the server take `--server URL` (or `COEVAL_SERVER`; default `http://127.0.0.1:7420`), and for HTTPS \
         `--cert`, `--key` and `--ca` (or `COEVAL_CERT`, `COEVAL_KEY` and `COEVAL_CA`) with PEM files. `--insecure` allows plain HTTP \
         beyond loopback.\n\n{}\
         ## Configuration\n\n\
         As the packages install it: every key, with its default.\n\n{}{}\
         ## Environment\n\n\
         | variable | for |\n| --- | --- |\n\
         | `COEVAL_SERVER`, `COEVAL_CERT`, `COEVAL_KEY`, `COEVAL_CA` | commands that talk to the server |\n\
         | `RUST_LOG` | what the daemons log, such as `debug` or `coeval=debug,info`; default `info` |\n",
        section(&command, "coeval"),
        configuration("host", include_str!("../../../../packaging/host.toml")),
        configuration("server", include_str!("../../../../packaging/server.toml")),
    )
}

#[test]
fn the_reference_says_what_there_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let reference = reference();
    if std::env::var_os("COEVAL_WRITE_DOCS").is_some() {
        fs::write(&path, &reference).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == reference, "docs/reference.md is not up to date: COEVAL_WRITE_DOCS=1 writes it anew");
}

/// The words of the `coeval` commands in a line of shell: enough of its grammar for what documents hold.
fn invocations(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut begun, mut quote) = (String::new(), false, None);
    let mut letters = line.chars().peekable();
    let mut redirected = false;
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), letter) => word.push(letter),
            (None, '\'' | '"') => (quote, begun) = (Some(letter), true),
            (None, '#') if !begun => break,
            (None, ' ' | '|' | ';' | '&' | '>' | '<') => {
                if begun && !std::mem::take(&mut redirected) {
                    commands.last_mut().unwrap().push(std::mem::take(&mut word));
                }
                (word, begun) = (String::new(), false);
                match letter {
                    '|' | ';' | '&' => commands.push(Vec::new()),
                    '>' | '<' => {
                        // `2>` is no argument.
                        if commands.last().unwrap().last().is_some_and(|last| last == "2") {
                            commands.last_mut().unwrap().pop();
                        }
                        while letters.next_if(|next| matches!(next, ' ' | '&' | '>')).is_some() {}
                        redirected = true;
                    }
                    _ => {}
                }
            }
            (None, letter) => {
                begun = true;
                word.push(letter);
            }
        }
    }
    if begun && !redirected {
        commands.last_mut().unwrap().push(word);
    }
    // After an option it is a user or group; after `--` it is the program again.
    let named = |before: &str| before.starts_with('-') && before != "--";
    let from_coeval = |words: Vec<String>| {
        let is_program = |at: &usize| words[*at] == "coeval" && (*at == 0 || !named(&words[*at - 1]));
        (0..words.len()).find(is_program).map(|at| words[at..].to_vec())
    };
    // `cd coeval` is none.
    commands.into_iter().filter_map(from_coeval).filter(|words| words.len() > 1).collect()
}

#[test]
fn every_command_in_the_documents_is_one() {
    use clap::Parser;

    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut documents = vec![root.join("README.md")];
    documents.extend(fs::read_dir(root.join("docs")).unwrap().map(|file| file.unwrap().path()));
    let mut seen = 0;
    for document in documents.iter().filter(|path| path.extension().is_some_and(|it| it == "md")) {
        let text = fs::read_to_string(document).unwrap().replace("\\\n", " ");
        let mut inside = false;
        for line in text.lines() {
            match line {
                "```sh" | "```console" => inside = true,
                "```" => inside = false,
                _ => {}
            }
            // `for kind in …; do coeval ${kind%:*} …` is no command by itself.
            if !inside || line.contains("${") || line.contains('…') {
                continue;
            }
            for words in invocations(line) {
                let parsed = Cli::try_parse_from(&words);
                seen += 1;
                if let Err(error) = parsed {
                    panic!("{}: `{}`: {error}", document.display(), words.join(" "));
                }
            }
        }
    }
    assert!(seen > 40, "only {seen} commands");
}

#[test]
fn shell_is_understood_as_far_as_documents_use_it() {
    let words = |line: &str| invocations(line).iter().map(|words| words.join(",")).collect::<Vec<_>>();
    assert_eq!(words("coeval skew   # far apart"), ["coeval,skew"]);
    assert_eq!(words("coeval skew > /dev/null 2>&1"), ["coeval,skew"]);
    assert_eq!(words("$ until coeval skew 2> x; do sleep 1; done"), ["coeval,skew"]);
    assert_eq!(words("a && coeval b 'c d' | coeval e"), ["coeval,b,c d", "coeval,e"]);
    assert_eq!(words("runuser -u coeval -- coeval skew; install -g coeval a b"), ["coeval,skew"]);
}
