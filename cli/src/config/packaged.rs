//! The configuration files that the packages install name every key that there is, as it is.

use std::collections::BTreeMap;

use super::*;

const HOST: &str = include_str!("../../../packaging/host.toml");
const SERVER: &str = include_str!("../../../packaging/server.toml");

/// What stands behind `#` as TOML is TOML: explanations begin with a space.
fn with_examples(text: &str) -> String {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|first: char| first.is_ascii_lowercase() || first == '[') => {
            key.to_owned()
        }
        _ => line.to_owned(),
    };
    text.lines().map(uncommented).collect::<Vec<_>>().join("\n")
}

/// The keys of a table, as the parser lists them when it meets one that it does not know.
fn keys<T: DeserializeOwned>(table: &str) -> Vec<String> {
    let error = toml::from_str::<T>(&format!("{table}\nno_such_key = 1")).err().unwrap();
    let keys: Vec<_> = error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert!(!keys.is_empty(), "{table}: {}", error.message());
    keys
}

/// Each table's keys in a file, by its heading.
fn named(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables = BTreeMap::from([(String::new(), Vec::new())]);
    let mut table = String::new();
    for line in with_examples(text).lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            table = line.to_owned();
            tables.insert(table.clone(), Vec::new());
        } else if let Some((key, _)) = line.split_once(" = ") {
            tables.entry(table.clone()).or_default().push(key.to_owned());
        }
    }
    tables
}

fn assert_names_all<T: DeserializeOwned>(text: &str, tables: &[&str]) {
    let named = named(text);
    assert_eq!(named.len(), tables.len() + 1, "{:?}", named.keys());
    // A backend's keys depend on its kind.
    for table in [""].iter().chain(tables).filter(|table| **table != "[[backend]]") {
        let plain = |key: &String| {
            !tables.contains(&format!("[{key}]").as_str()) && !tables.contains(&format!("[[{key}]]").as_str())
        };
        let mut missing = keys::<T>(table);
        missing.retain(|key| plain(key) && !named[*table].contains(key));
        assert_eq!(missing, [""; 0], "in {table:?}");
    }
    // And every table that there is.
    for key in keys::<T>("") {
        let is_table = toml::from_str::<T>(&format!("[{key}]\nno_such_key = 1")).err();
        if is_table.is_some_and(|error| error.message().starts_with("unknown field `no_such_key`")) {
            assert!(tables.contains(&format!("[{key}]").as_str()), "there is no [{key}]");
        }
    }
}

#[test]
fn what_is_installed_is_valid() {
    let host: HostConfig = parse(HOST, Path::new("host.toml")).unwrap();
    host.check().unwrap();
    assert_eq!(host, HostConfig { nbd: host.nbd.clone(), ..HostConfig::default() });
    let server: ServerConfig = parse(SERVER, Path::new("server.toml")).unwrap();
    server.check().unwrap();
    assert_eq!(server, ServerConfig::default());
}

#[test]
fn what_is_shown_in_comments_is_valid_and_shows_the_defaults() {
    let host: HostConfig = parse(&with_examples(HOST), Path::new("host.toml")).unwrap();
    host.check().unwrap();
    let plain = HostConfig {
        name: host.name.clone(),
        nbd: host.nbd.clone(),
        time_key: host.time_key.clone(),
        publish: host.publish.clone(),
        backends: host.backends.clone(),
        hooks: HooksConfig {
            before: host.hooks.before.clone(),
            after: host.hooks.after.clone(),
            ..HooksConfig::default()
        },
        tls: host.tls.clone(),
        ..HostConfig::default()
    };
    assert_eq!(host, plain);
    let server: ServerConfig = parse(&with_examples(SERVER), Path::new("server.toml")).unwrap();
    server.check().unwrap();
    let plain = ServerConfig {
        tls: server.tls.clone(),
        hosts: server.hosts.clone(),
        hooks: server.hooks.clone(),
        follow_ups: server.follow_ups.clone(),
        ..ServerConfig::default()
    };
    assert_eq!(server, plain);
    let entry = &server.hosts[0];
    assert_eq!(
        (entry.rate_ppm, entry.min_forward, entry.agentless),
        (default_rate_ppm(), Nanos::ZERO, false)
    );
    assert_eq!(server.follow_ups[0].deadline, default_deadline());
}

#[test]
fn every_key_is_named() {
    assert_names_all::<HostConfig>(HOST, &["[hooks]", "[publish]", "[tls]", "[[backend]]"]);
    assert_names_all::<ServerConfig>(
        SERVER,
        &["[time]", "[cut]", "[tls]", "[[host]]", "[[hook]]", "[[follow_up]]"],
    );
}
