//! The answering end: which keys a host takes requests by.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::rand::{self, SystemRandom};
use serde::{Deserialize, Serialize};

use super::{Key, Refused, Seal, Tlv, hex};

/// Session keys are told from configured ones by this SPP.
const SESSION_POLICY: u8 = 0xC0;
/// So many servers, and runs of servers, can have a session key at one host; the oldest key makes room.
const SESSIONS: usize = 16;

/// A key that a server draws anew for each host at each start, and hands out over the control plane.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionKey {
    id: u32,
    /// In hex.
    #[serde(with = "hex")]
    secret: [u8; 32],
}

impl std::fmt::Debug for SessionKey {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SessionKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn draw() -> std::io::Result<Self> {
        let random = SystemRandom::new();
        let none = |_| std::io::Error::other("the system has no random numbers");
        let id = rand::generate::<[u8; 4]>(&random).map_err(none)?.expose();
        let secret = rand::generate(&random).map_err(none)?.expose();
        Ok(SessionKey { id: u32::from_be_bytes(id), secret })
    }

    /// What messages are authenticated with.
    pub fn key(&self) -> Key {
        Key::new(SESSION_POLICY, self.id, &self.secret)
    }
}

/// The keys of one host. As soon as there is one, only authenticated requests are answered.
#[derive(Debug, Default)]
pub struct Keyring(Mutex<Keys>);

#[derive(Debug, Default)]
struct Keys {
    configured: Option<Key>,
    sessions: VecDeque<Session>,
}

#[derive(Debug)]
struct Session {
    handed: SessionKey,
    key: Key,
    /// The newest request's number.
    last: Option<u64>,
}

impl Keyring {
    /// A keyring with the key that the host's configuration has, if any.
    pub fn new(configured: Option<Key>) -> Self {
        Keyring(Mutex::new(Keys { configured, sessions: VecDeque::new() }))
    }

    /// Takes a session key. One that is here already stays as it is: its requests are not taken a second time.
    pub fn add(&self, handed: &SessionKey) {
        let mut keys = self.keys();
        if keys.sessions.iter().any(|session| session.handed == *handed) {
            return;
        }
        keys.sessions.retain(|session| session.handed.id != handed.id);
        if keys.sessions.len() == SESSIONS {
            keys.sessions.pop_front();
        }
        keys.sessions.push_back(Session { handed: handed.clone(), key: handed.key(), last: None });
    }

    /// The message in `datagram` and what its answers are to be authenticated with: nothing on a host without keys, which
    /// takes everything.
    ///
    /// With a session key, each request is taken once, and none after a later one. With the configured key a request may be
    /// replayed, as linuxptp's may: whoever does that gets an answer that fits no request on its way.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit<'a>(&self, datagram: &'a [u8]) -> Result<(&'a [u8], Option<Seal>), Refused> {
        let mut keys = self.keys();
        if keys.configured.is_none() && keys.sessions.is_empty() {
            return Ok((datagram, None));
        }
        let tlv = Tlv::find(datagram)?;
        let key = match &keys.configured {
            Some(key) if key.is_named_by(&tlv) => {
                key.check(&tlv)?;
                key.clone()
            }
            _ => {
                let mut sessions = keys.sessions.iter_mut();
                let session =
                    sessions.find(|session| session.key.is_named_by(&tlv)).ok_or(Refused::UnknownKey)?;
                session.key.check(&tlv)?;
                let number = tlv.number.ok_or(Refused::Form)?;
                if session.last.is_some_and(|last| number <= last) {
                    return Err(Refused::Replayed);
                }
                session.last = Some(number);
                session.key.clone()
            }
        };
        Ok((tlv.message, Some(Seal { key, number: tlv.number })))
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        // Each change is one assignment or insertion; a panic cannot leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
