//! Labels, selectors and saved groups: which volumes are meant. No clock and no I/O.

mod selector;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::messages::Member;
use crate::volume::is_name;
pub use selector::{NotASelector, Selector};

/// Labels by key. Keys and values follow the rule for volume names.
pub type Labels = BTreeMap<String, String>;

/// Labels to set; null removes one. `POST /api/v1/volumes/{host}/{volume}/labels` answers with what the volume has then.
pub type LabelChange = BTreeMap<String, Option<String>>;

/// A group with a name. `POST /api/v1/groups`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Its name, by the rule for volume names.
    pub name: String,
    /// Which volumes it means.
    pub volumes: Which,
}

/// Which volumes are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Which {
    /// Those whose labels fit, at the time when it is used. A volume has its host's labels too; its own win.
    #[schema(value_type = String, example = "app=shop,tier!=scratch")]
    Selector(Selector),
    /// These.
    List(Vec<Member>),
}

/// A group and what it means now. `GET /api/v1/groups/{name}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    /// The group.
    #[serde(flatten)]
    pub group: Group,
    /// The volumes that a snapshot of it would take.
    pub members: Vec<Member>,
    /// What keeps a snapshot of it from being whole. While there is any, none is taken.
    pub missing: Vec<Missing>,
}

/// A member that cannot be had now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Missing {
    /// The host.
    pub host: String,
    /// The volume; null where the host does not tell which of its volumes are members.
    pub volume: Option<String>,
    /// Why not.
    pub why: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.volume {
            Some(volume) => write!(f, "{}/{volume}: {}", self.host, self.why),
            None => write!(f, "volumes of host {}: {}", self.host, self.why),
        }
    }
}

/// A host as it is seen now.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name.
    pub host: String,
    /// Its labels, by the server's configuration.
    pub labels: Labels,
    /// Its volumes, those that it cannot serve with the reason; or why it does not answer.
    pub volumes: Result<BTreeMap<String, Option<String>>, String>,
}

/// What a choice of volumes means now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Those that can be had.
    pub members: BTreeSet<Member>,
    /// Those that cannot.
    pub missing: BTreeSet<Missing>,
}

impl Resolved {
    fn take(&mut self, member: Member, hosts: &[Seen]) {
        let why = match hosts.iter().find(|seen| seen.host == member.host).map(|seen| &seen.volumes) {
            None => "the server's configuration does not list the host".to_owned(),
            Some(Err(why)) => why.clone(),
            Some(Ok(volumes)) => match volumes.get(&member.volume) {
                None => "the host has no such volume".to_owned(),
                Some(Some(why)) => format!("it is not served: {why}"),
                Some(None) => {
                    self.members.insert(member);
                    return;
                }
            },
        };
        self.missing.insert(Missing { host: member.host, volume: Some(member.volume), why });
    }
}

/// These volumes; none: all volumes of all hosts.
pub fn listed(list: &[Member], hosts: &[Seen]) -> Resolved {
    let mut resolved = Resolved::default();
    list.iter().cloned().for_each(|member| resolved.take(member, hosts));
    if list.is_empty() {
        for Seen { host, volumes, .. } in hosts {
            match volumes {
                Ok(volumes) => volumes.keys().for_each(|volume| {
                    resolved.take(Member { host: host.clone(), volume: volume.clone() }, hosts)
                }),
                Err(why) => {
                    resolved.missing.insert(Missing { host: host.clone(), volume: None, why: why.clone() });
                }
            }
        }
    }
    resolved
}

/// The volumes whose labels fit. `labels` are the volumes' own.
pub fn selected(selector: &Selector, hosts: &[Seen], labels: &BTreeMap<Member, Labels>) -> Resolved {
    let mut resolved = Resolved::default();
    let none = Labels::new();
    for seen in hosts {
        let fits = |own: &Labels| selector.fits(&effective(&seen.labels, own));
        let labelled = labels.iter().filter(|(member, own)| member.host == seen.host && fits(own));
        labelled.for_each(|(member, _)| resolved.take(member.clone(), hosts));
        let others = match &seen.volumes {
            _ if !fits(&none) => continue,
            Ok(volumes) => volumes.keys(),
            Err(why) => {
                let (host, why) = (seen.host.clone(), why.clone());
                resolved.missing.insert(Missing { host, volume: None, why });
                continue;
            }
        };
        let members = others.map(|volume| Member { host: seen.host.clone(), volume: volume.clone() });
        members.filter(|member| !labels.contains_key(member)).for_each(|member| resolved.take(member, hosts));
    }
    resolved
}

/// A volume's labels: its host's, and its own over them.
pub fn effective(host: &Labels, own: &Labels) -> Labels {
    host.iter().chain(own).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether a text can be a label's key or value.
pub fn is_label(text: &str) -> bool {
    is_name(text)
}

#[cfg(test)]
mod tests;
