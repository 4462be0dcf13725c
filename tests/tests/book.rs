//! The commands of the documentation, typed in as they stand, on three machines that the package is installed on: each with
//! systemd, a root and a network of its own. A page that comes to have commands comes to this test, or says in [`ELSEWHERE`]
//! who runs them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::booted::Booted;
use harness::namespaces::Network;
use harness::shell::Shell;
use harness::tools::run;
use harness::{eventually, forget_this_package};
use timesync::clock::pace_now;
use timesync::time::Nanos;

/// Pages whose commands are run by others.
const ELSEWHERE: [(&str, &str); 3] = [
    ("quickstart.md", "tests/quickstart.rs; it has them from where the package does not come from"),
    (
        "recipes.md",
        "tests/filesystems.rs, postgres.rs and thin.rs: they need devices that these machines do not have",
    ),
    ("simulator.md", "tests/simulator.rs"),
];

/// Lines that are not typed, and why.
const NOT_TYPED: [(&str, &str); 6] = [
    ("cargo run --release -- demo", "tests/demo.rs"),
    ("./tests/run", "runs this"),
    // Their daemons run already: the units start them by the very same lines, which is looked at instead.
    ("coeval host --config /etc/coeval/host.toml  ", "coeval-host.service"),
    ("coeval server --config /etc/coeval/server.toml  ", "coeval-server.service"),
    ("editor ", "needs somebody who types"),
    ("openssl pkcs12 ", "asks for a password at the terminal"),
];

/// Lines that are refused here as their pages say, and what they say then.
const REFUSED: [(&str, &str); 2] = [
    ("coeval snapshot restore before-upgrade                # refused", "connected"),
    ("coeval volume delete db1/data", "--with-snapshots"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(page: &str) -> String {
    let directory = if page == "README.md" { root() } else { root().join("docs") };
    std::fs::read_to_string(directory.join(page)).unwrap()
}

/// What stands in the page's blocks of this kind.
fn blocks(page: &str, kind: &str) -> Vec<String> {
    let (text, begin) = (read(page), format!("{kind}\n"));
    text.split("```").filter_map(|block| block.strip_prefix(&begin).map(str::to_owned)).collect()
}

/// The commands of the page's blocks, each with the lines that it goes on in.
fn commands(page: &str) -> Vec<Vec<String>> {
    let lines = |block: String| -> Vec<String> {
        block.replace("\\\n", "").lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    blocks(page, "sh").into_iter().map(lines).collect()
}

/// Where something is typed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Backup,
    Db1,
}

struct Machines {
    backup: Shell,
    hosts: [Shell; 2],
}

impl Machines {
    /// Types in a line of the documentation, on the machines that it says.
    fn follow(&mut self, line: &str, at: At) {
        if let Some((_, why)) = NOT_TYPED.iter().find(|(begin, _)| line.starts_with(begin)) {
            if let Some(unit) = why.strip_suffix(".service") {
                let (command, _) = line.split_once('#').unwrap();
                let said = self.hosts[0].type_in(&format!("systemctl cat {unit}")).1;
                assert!(said.contains(&format!("ExecStart=/usr/bin/{}\n", command.trim())), "{line}: {said}");
            }
            return;
        }
        let [db1, db2] = &mut self.hosts;
        let shells = match (line, at) {
            _ if line.ends_with("# on all three") => vec![&mut self.backup, db1, db2],
            _ if line.contains("# on each host") => vec![db1, db2],
            _ if line.contains("# on backup") || line.contains("# on the server") => vec![&mut self.backup],
            (_, At::Backup) => vec![&mut self.backup],
            (_, At::Db1) => vec![db1],
        };
        for shell in shells {
            let refusal = REFUSED
                .iter()
                .find(|(refused, _)| line == *refused || refused.contains('#') && line.starts_with(refused));
            if let Some((_, why)) = refusal {
                let (status, said) = shell.type_in(line);
                assert!(status == 1 && said.contains(why), "{line}: {status}: {said}");
                continue;
            }
            // Those look at what comes about by itself: bounds, daemons that are found again.
            let looks = ["coeval skew", "coeval doctor"].iter().any(|look| line.starts_with(look));
            let mut once = || match shell.type_in(line) {
                (0, said) => Ok(said),
                (status, said) => Err(format!("{line}: {status}: {said}")),
            };
            let patience_ends = pace_now() + Nanos::from_millis(60_000);
            let said = loop {
                match once() {
                    Ok(said) => break said,
                    Err(why) => assert!(looks && pace_now() < patience_ends, "{why}"),
                }
            };
            println!("$ {line}\n{said}");
        }
    }

    /// What the documentation takes for granted: the package, programs that its configurations name, and a way from
    /// `backup` to the hosts. (Nothing listens for SSH.)
    fn equip(&mut self, package: &Path) {
        let [db1, db2] = &mut self.hosts;
        for shell in [&mut self.backup, db1, db2] {
            for command in [
                &format!("cp {} .", package.display()),
                "for it in quiesce resume announce copy-snapshot; do
                   install -m 755 <(echo '#!/bin/sh') /usr/local/bin/$it
                 done",
            ] {
                assert_eq!(shell.type_in(command), (0, String::new()), "{command}");
            }
        }
        for (name, shell) in ["db1", "db2"].into_iter().zip(&mut self.hosts) {
            shell.type_in(&format!("socat UNIX-LISTEN:/run/wire/{name},fork EXEC:bash &"));
        }
        self.prepare(
            At::Backup,
            r#"cat >/usr/local/bin/ssh <<'END'
#!/bin/bash
echo "${@:2}" | socat -t 30 - UNIX-CONNECT:/run/wire/$1
END
cat >/usr/local/bin/scp <<'END'
#!/bin/bash
IFS=: read -r host directory <<<"${!#}"
for file in "${@:1:$#-1}"; do
  (echo "base64 -d >$directory/$file <<'E'"; base64 "$file"; echo E) | socat -t 30 - UNIX-CONNECT:/run/wire/$host
done
END
chmod 755 /usr/local/bin/ssh /usr/local/bin/scp"#,
        );
    }

    /// Writes the configurations that the pages have, all in one.
    fn configure(&mut self) {
        let host = |name: &str, address: &str| {
            let readme = blocks("README.md", "toml")[0].replace("db1", name).replace("10.0.0.11", address);
            let (socket, tls) = ("\"unix:///run/coeval/nbd.sock\"", format!("\"tls://{address}:10809\""));
            let readme = readme.replace(&format!("[{socket}]"), &format!("[{socket}, {tls}]"));
            let images = blocks("volumes.md", "toml").concat();
            format!("log_format = \"json\"\n{images}{readme}\n{}", blocks("hooks.md", "toml")[0])
        };
        let server = blocks("README.md", "toml")[1].clone()
            + &blocks("hooks.md", "toml")[1]
            + &blocks("operations.md", "toml").concat();
        let [db1, db2] = &mut self.hosts;
        for (shell, role, text) in [
            (&mut self.backup, "server", server),
            (db1, "host", host("db1", "10.0.0.11")),
            (db2, "host", host("db2", "10.0.0.12")),
        ] {
            let write = format!("mkdir -p /srv/images && cat >/etc/coeval/{role}.toml <<'END'\n{text}\nEND");
            assert_eq!(shell.type_in(&write), (0, String::new()));
        }
    }

    /// Types in all blocks of a page.
    fn follow_page(&mut self, page: &str, at: At) {
        self.follow_blocks(&commands(page), at);
    }

    /// Types in blocks of the documentation.
    fn follow_blocks(&mut self, blocks: &[Vec<String>], at: At) {
        blocks.iter().flatten().for_each(|line| self.follow(line, at));
    }

    /// Types in what the documentation takes for granted.
    fn prepare(&mut self, at: At, command: &str) -> String {
        let shell = match at {
            At::Backup => &mut self.backup,
            At::Db1 => &mut self.hosts[0],
        };
        let (status, said) = shell.type_in(command);
        assert_eq!(status, 0, "{command}: {said}");
        said
    }

    /// Pages speak of them.
    fn make_volumes(&mut self) {
        self.prepare(At::Backup, "coeval volume create db1/data 1GiB && coeval volume create db2/data 1GiB");
    }

    /// Types in volumes.md, whose commands are for different moments.
    fn follow_volumes(&mut self) {
        let commands = commands("volumes.md");
        let [restore, check, clone, resize, images, delete] = &commands[..] else {
            panic!("volumes.md has other blocks now: {commands:?}")
        };
        self.clear();
        self.make_volumes();
        self.prepare(At::Backup, "coeval snapshot create before-upgrade");
        let connected = "'nbd+unix:///data?socket=/run/coeval/nbd.sock'";
        self.prepare(
            At::Db1,
            &format!("stdbuf -oL qemu-io -f raw -c 'read 0 4k' -c 'sleep 600000' {connected} >client &"),
        );
        self.prepare(At::Db1, "until grep read client; do sleep 0.1; done");
        self.follow_blocks(std::slice::from_ref(restore), At::Backup);
        self.prepare(At::Db1, "kill %% && { wait %% || true; }");

        self.prepare(At::Db1, "systemctl stop coeval-host");
        self.follow_blocks(std::slice::from_ref(check), At::Db1);
        self.prepare(At::Db1, "systemctl start coeval-host");
        eventually(|| match self.backup.type_in("coeval volume list") {
            (0, _) => Ok(()),
            (_, said) => Err(said),
        });
        self.follow_blocks(&[clone.clone(), resize.clone()], At::Backup);
        for line in images {
            self.prepare(At::Backup, "coeval volume delete db1/data --with-snapshots");
            self.prepare(
                At::Db1,
                "mkdir -p /var/lib/coeval/images && cd /var/lib/coeval/images && truncate -s 1M data.raw && qemu-img convert -f raw -O qcow2 data.raw data.qcow2 && \
                 cp data.* /srv/images && chown -R coeval: .",
            );
            self.follow(line, At::Backup);
        }
        self.prepare(At::Backup, "coeval snapshot create of-an-image --volume db1/data");
        self.follow_blocks(std::slice::from_ref(delete), At::Backup);
    }

    /// Everything that the pages before have made is gone.
    fn clear(&mut self) {
        self.prepare(
            At::Backup,
            "for it in $(coeval schedule list --json | jq -r '.[].name'); do coeval schedule delete $it; done
             for it in $(coeval group list --json | jq -r '.[].name'); do coeval group delete $it; done
             for it in $(coeval snapshot list --json | jq -r '.[].name'); do coeval snapshot delete $it; done
             for it in $(coeval volume list --json | jq -r '.[] | .host + \"/\" + .volumes[].name'); do coeval volume delete $it; done",
        );
    }
}

/// The package of this program as it is.
fn package() -> PathBuf {
    let mut build = Command::new(root().join("packaging/build-deb"));
    forget_this_package(&mut build);
    // The last thing that it says is where it has put it.
    run(&mut build).trim().lines().last().unwrap().into()
}

#[test]
fn every_page_that_has_commands_is_run() {
    let typed = include_str!("book.rs");
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") && !blocks(&name, "sh").is_empty() {
            let follows = ["follow_page", "= commands"].map(|how| format!("{how}(\"{name}\""));
            let elsewhere = ELSEWHERE.iter().any(|(page, _)| *page == name);
            assert!(
                follows.iter().any(|it| typed.contains(it)) || elsewhere,
                "nobody runs the commands of docs/{name}"
            );
        }
    }
}

#[test]
fn the_documentations_commands_do_what_it_says() {
    let package = package();
    let network = Network::new(3).unwrap();
    let shared = tempfile::tempdir().unwrap();
    let mut systems = Vec::new();
    for (place, (name, address)) in network.hosts.iter().zip([
        ("backup", "10.0.0.2/24"),
        ("db1", "10.0.0.11/24"),
        ("db2", "10.0.0.12/24"),
    ]) {
        run(place.command("ip").args(["address", "add", address, "dev", "eth0"]));
        systems.push(Booted::start(place, name, shared.path()));
    }
    let [backup, db1, db2] = &systems[..] else { unreachable!("three are made") };
    let mut machines = Machines { backup: backup.shell(), hosts: [db1.shell(), db2.shell()] };
    machines.equip(&package);
    let three_machines = commands("three-machines.md");
    machines.follow_blocks(&three_machines[..1], At::Backup);
    machines.configure();
    machines.follow_blocks(&three_machines[1..], At::Backup);

    machines.clear();
    machines.prepare(At::Backup, "coeval volume create db2/data 1GiB --label app=shop");
    let readme = commands("README.md");
    // What it makes is not this fleet's authority.
    machines.prepare(At::Backup, "mkdir /root/elsewhere && cd /root/elsewhere");
    machines.follow_blocks(&readme[..2], At::Backup);
    machines.prepare(At::Backup, "cd /root && coeval pki issue --operator anna && cd pki && mkdir /backup");
    machines.follow_blocks(&readme[2..], At::Backup);
    let anna = "/root/pki/anna";
    machines.prepare(
        At::Backup,
        &format!("export COEVAL_CERT={anna}.pem COEVAL_KEY={anna}.key COEVAL_CA=/root/pki/ca.pem"),
    );

    machines.clear();
    machines.make_volumes();
    machines.prepare(At::Db1, "cp /etc/coeval/{db1,ca}.* .");
    machines.prepare(At::Backup, "mkdir /somewhere-else && cd");
    let operations = commands("operations.md");
    machines.follow_blocks(&operations[..2], At::Db1);
    machines.follow_blocks(&operations[2..], At::Backup);
    eventually(|| {
        machines.backup.type_in("coeval snapshot show before-upgrade").0.eq(&0).then_some(()).ok_or("not yet")
    });
    assert!(machines.prepare(At::Backup, "coeval snapshot show before-upgrade").contains("consistent"));

    machines.clear();
    machines.make_volumes();
    machines.prepare(
        At::Db1,
        "qemu-io -f raw -c 'write -q -P 7 0 1M' 'nbd+unix:///data?socket=/run/coeval/nbd.sock'",
    );
    machines
        .prepare(At::Backup, "for it in nightly-3 monday tuesday; do coeval snapshot create $it; done; cd");
    let nbd = commands("nbd.md");
    machines.follow_blocks(&nbd[..1], At::Backup);
    machines.follow_blocks(&nbd[1..], At::Db1);
    machines.prepare(At::Backup, "echo secret >restic-password");
    machines.follow_page("backups.md", At::Backup);
    // Nothing was written since: what went by way of restic, of qcow2, and of an increment, is the same.
    machines.prepare(
        At::Backup,
        "cmp data.raw db1-data.raw && cmp data.raw restored.raw && qemu-img compare data.qcow2 data.raw",
    );
    machines.prepare(At::Backup, "cmp -n 1 data.raw <(printf '\\7')");

    machines.follow_volumes();

    machines.clear();
    machines.make_volumes();
    machines.follow_page("hooks.md", At::Backup);
    machines.prepare(
        At::Backup,
        "cd pki; timeout --preserve-status --signal=INT 3 coeval skew --record clocks.jsonl",
    );
    machines.follow_page("skew.md", At::Backup);
    machines.clear();
    machines.make_volumes();
    machines.follow_page("api.md", At::Backup);
    machines.follow_page("logs.md", At::Db1);
    machines.follow_page("dashboard.md", At::Backup);

    // Volumes are data: they outlive the package.
    machines.prepare(At::Db1, "apt-get purge -y coeval && test -e /var/lib/coeval/volumes/data/volume.json");
    machines.prepare(At::Db1, "! test -e /run/coeval && ! systemctl cat coeval-host && ! pgrep -x coeval");
}
