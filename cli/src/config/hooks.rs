//! `[hooks]` of a host and `[[hook]]` of a server.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use snapshot::coordinator::GroupHook;
use snapshot::hooks::{Hook, Hooks};
use snapshot::messages::Member;
use timesync::time::Nanos;

use super::ConfigError;
use crate::args::member;
use crate::units::deserialize_duration;

/// `[hooks]`: what runs on a host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HooksConfig {
    /// A program, by its absolute path, and its arguments: runs before a snapshot, which is refused if this fails.
    pub before: Vec<String>,
    /// Runs after a snapshot, and after one that failed, if the one before was started; after a crash perhaps twice.
    pub after: Vec<String>,
    /// The one before is killed if it takes longer. Default 30s.
    #[serde(deserialize_with = "deserialize_duration")]
    pub before_timeout: Nanos,
    /// The one after is killed if it takes longer. Default 30s.
    #[serde(deserialize_with = "deserialize_duration")]
    pub after_timeout: Nanos,
    /// If the server orders nothing for so long after the one before, the one after runs all the same, and no snapshot
    /// comes of it. Default 120s.
    #[serde(deserialize_with = "deserialize_duration")]
    pub patience: Nanos,
}

impl Default for HooksConfig {
    fn default() -> Self {
        HooksConfig {
            before: Vec::new(),
            after: Vec::new(),
            before_timeout: default_timeout(),
            after_timeout: default_timeout(),
            patience: Nanos::from_millis(120_000),
        }
    }
}

impl HooksConfig {
    /// What the host is told.
    pub fn hooks(&self) -> Hooks {
        hooks(&self.before, self.before_timeout, &self.after, self.after_timeout)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first thing that is wrong, in one sentence.
    pub fn check(&self) -> Result<(), ConfigError> {
        check("hooks", &self.hooks())?;
        super::in_range("hooks.patience (in ns)", self.patience.get(), 1_000_000_000, DAY)
    }
}

/// `[[hook]]`: what runs on the server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupHookConfig {
    /// What `coeval snapshot create --hook` calls it.
    pub name: String,
    /// It runs for every snapshot that has one of these volumes, written `HOST/VOLUME`. Default: only where it is named.
    #[serde(default, deserialize_with = "members")]
    pub volumes: Vec<Member>,
    /// As [`HooksConfig::before`].
    #[serde(default)]
    pub before: Vec<String>,
    /// As [`HooksConfig::after`].
    #[serde(default)]
    pub after: Vec<String>,
    /// As [`HooksConfig::before_timeout`].
    #[serde(default = "default_timeout", deserialize_with = "deserialize_duration")]
    pub before_timeout: Nanos,
    /// As [`HooksConfig::after_timeout`].
    #[serde(default = "default_timeout", deserialize_with = "deserialize_duration")]
    pub after_timeout: Nanos,
}

impl GroupHookConfig {
    /// What the coordinator is told.
    pub fn hook(&self) -> GroupHook {
        let hooks = hooks(&self.before, self.before_timeout, &self.after, self.after_timeout);
        GroupHook { name: self.name.clone(), volumes: self.volumes.clone(), hooks }
    }
}

const DAY: i64 = 86_400_000_000_000;

fn default_timeout() -> Nanos {
    Nanos::from_millis(30_000)
}

fn hooks(before: &[String], before_timeout: Nanos, after: &[String], after_timeout: Nanos) -> Hooks {
    let hook = |command: &[String], timeout| {
        (!command.is_empty()).then(|| Hook { command: command.to_vec(), timeout })
    };
    Hooks { before: hook(before, before_timeout), after: hook(after, after_timeout) }
}

fn members<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Member>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| member(text).map_err(serde::de::Error::custom)).collect()
}

/// Checks a server's hooks.
///
/// # Errors
/// The first thing that is wrong, in one sentence.
pub fn check_all(all: &[GroupHookConfig]) -> Result<(), ConfigError> {
    for (index, hook) in all.iter().enumerate() {
        if all[..index].iter().any(|other| other.name == hook.name) {
            return Err(ConfigError::Invalid(format!("two hooks are called {}", hook.name)));
        }
        let what = format!("hook {}", hook.name);
        let hooks = hook.hook().hooks;
        if hooks.is_empty() {
            return Err(ConfigError::Invalid(format!("{what} has neither before nor after")));
        }
        check(&what, &hooks)?;
    }
    Ok(())
}

fn check(what: &str, hooks: &Hooks) -> Result<(), ConfigError> {
    for hook in [&hooks.before, &hooks.after].into_iter().flatten() {
        let program = hook.command.first().map_or("", String::as_str);
        if !Path::new(program).is_absolute() {
            let what = format!("{what}: `{program}` is no absolute path to a program");
            return Err(ConfigError::Invalid(what));
        }
        super::in_range(&format!("{what}: the timeout (in ns)"), hook.timeout.get(), 1_000_000, DAY)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{HostConfig, ServerConfig, parse};
    use super::*;

    #[test]
    fn hooks_are_lists_of_arguments_with_deadlines() {
        let text = "[hooks]\nbefore = [\"/bin/quiet\", \"now\"]\nbefore_timeout = \"5s\"";
        let config: HostConfig = parse(text, Path::new("h")).unwrap();
        config.check().unwrap();
        let before = Hook {
            command: vec!["/bin/quiet".to_owned(), "now".to_owned()],
            timeout: Nanos::from_millis(5_000),
        };
        assert_eq!(config.hooks.hooks(), Hooks { before: Some(before), after: None });
        let text = "[[hook]]\nname = \"db\"\nvolumes = [\"a/data\"]\nafter = [\"/bin/go\"]";
        let config: ServerConfig = parse(text, Path::new("s")).unwrap();
        config.check().unwrap();
        let hook = config.hooks[0].hook();
        assert_eq!(hook.volumes, [Member { host: "a".to_owned(), volume: "data".to_owned() }]);
        assert_eq!(hook.hooks.after.unwrap().timeout, Nanos::from_millis(30_000));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let host = |text: &str| {
            let config = parse::<HostConfig>(text, Path::new("h")).map_err(|error| error.to_string())?;
            config.check().map_err(|error| error.to_string())
        };
        assert!(host("[hooks]\nbefore = [\"quiet\"]").unwrap_err().contains("no absolute path"));
        assert!(host("[hooks]\nbefore = \"/bin/quiet now\"").is_err(), "no shell: a list");
        assert!(host("[hooks]\npatience = \"1ms\"").unwrap_err().contains("hooks.patience"));
        let server = |text: &str| {
            let config = parse::<ServerConfig>(text, Path::new("s")).map_err(|error| error.to_string())?;
            config.check().map_err(|error| error.to_string())
        };
        assert!(server("[[hook]]\nname = \"a\"").unwrap_err().contains("neither before nor after"));
        let one = "[[hook]]\nname = \"a\"\nafter = [\"/bin/x\"]\n";
        assert!(server(one).is_ok());
        assert!(server(&format!("{one}{one}")).unwrap_err().contains("two hooks are called a"));
    }
}
