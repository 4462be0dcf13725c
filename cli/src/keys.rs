//! The keys that time exchanges are authenticated with: from files, or drawn for this run.

use std::path::Path;

use snapshot::remote::HostEndpoint;
use timesync::authentication::{Key, SessionKey};
use timesync::server::{self, HostKey};

use crate::config::{ConfigError, ServerConfig};

/// Reads a key file: linuxptp's `sa_file` with one key.
///
/// # Errors
/// [`ConfigError`], with the file's name.
pub fn read(path: &Path) -> Result<Key, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    Key::read(&text)
        .map_err(|error| ConfigError::Invalid(format!("the key file {}: {error}", path.display())))
}

/// A session key and the host that it is for.
#[derive(Clone, Debug)]
pub struct Handing {
    /// The host.
    pub host: HostEndpoint,
    /// Its key.
    pub key: SessionKey,
}

/// Gives every host of `time` its key: the configured one; or a new one, which is to be handed out, where the host runs
/// `coeval host` and both ends of the control plane show certificates.
///
/// # Errors
/// [`ConfigError`]: a key file cannot be used, or the system has no random numbers.
pub fn assign(config: &ServerConfig, time: &mut server::ServerConfig) -> Result<Vec<Handing>, ConfigError> {
    let mut handings = Vec::new();
    for (entry, host) in config.hosts.iter().zip(&mut time.hosts) {
        let agentless = entry.agentless;
        if let Some(path) = &entry.time_key {
            host.key = Some(HostKey { key: read(path)?, agentless });
            continue;
        }
        let Some(control) = entry.control.as_ref().filter(|url| url.starts_with("https://")) else {
            continue;
        };
        if config.tls.is_some() && !agentless {
            let key = SessionKey::draw().map_err(|error| ConfigError::Invalid(error.to_string()))?;
            host.key = Some(HostKey { key: key.key(), agentless });
            let host = HostEndpoint {
                name: entry.name.clone(),
                control: control.clone(),
                ..HostEndpoint::default()
            };
            handings.push(Handing { host, key });
        }
    }
    Ok(handings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_gets_the_key_that_its_control_plane_can_carry() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let host = |name: &str, rest: &str| {
            format!("[[host]]\nname = {name:?}\ntime = \"10.0.0.{name}:319\"\n{rest}\n")
        };
        let text = [
            "[tls]\ncert = \"c\"\nkey = \"k\"\nca = \"a\"".to_owned(),
            host("1", "control = \"https://10.0.0.1:7421\""),
            host("2", "control = \"http://127.0.0.1:7421\""),
            host("3", &format!("agentless = true\ntime_key = {file:?}")),
            host("4", &format!("control = \"https://10.0.0.4:7421\"\ntime_key = {file:?}")),
            host("5", "agentless = true"),
        ]
        .join("\n");
        let config: ServerConfig = toml::from_str(&text).unwrap();
        let assigned = || {
            let mut time = config.time_server(false);
            assign(&config, &mut time).map(|handings| (handings, time))
        };
        assert!(assigned().unwrap_err().to_string().contains("key"), "there is no such file");
        std::fs::write(&file, "spp 1\n").unwrap();
        assert!(assigned().unwrap_err().to_string().contains("there is no key in it"));
        std::fs::write(&file, "spp 1\n1 SHA256-128 ASCII:0123456789abcdef\n").unwrap();
        let (handings, time) = assigned().unwrap();
        assert_eq!(handings.iter().map(|handing| handing.host.name.as_str()).collect::<Vec<_>>(), ["1"]);
        let keys: Vec<_> = time.hosts.iter().map(|host| host.key.as_ref().map(|key| key.agentless)).collect();
        assert_eq!(keys, [Some(false), None, Some(true), Some(false), None]);
    }
}
