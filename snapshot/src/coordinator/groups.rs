//! Labels and saved groups, and what they mean now.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::{Coordinator, CoordinatorError};
use crate::groups::{
    Group, GroupStatus, LabelChange, Labels, Missing, Resolved, Seen, Which, is_label, listed, selected,
};
use crate::messages::{CreateRequest, Member};
use crate::orders::HostDescription;
use crate::volume::is_name;

/// So many missing members are named in a sentence.
const NAMED: usize = 3;

/// The hosts as they are now, and the labels of their volumes.
pub(super) struct View {
    hosts: Vec<Seen>,
    labels: BTreeMap<Member, Labels>,
}

impl View {
    fn resolve(&self, which: &Which) -> Resolved {
        match which {
            Which::Selector(selector) => selected(selector, &self.hosts, &self.labels),
            Which::List(list) => listed(list, &self.hosts),
        }
    }

    fn status(&self, group: Group) -> GroupStatus {
        let Resolved { members, missing } = self.resolve(&group.volumes);
        let (members, missing) = (members.into_iter().collect(), missing.into_iter().collect());
        GroupStatus { group, members, missing }
    }

    /// What a snapshot would lack if it were taken now.
    pub(super) fn missing(&self, request: &CreateRequest, groups: &[Group]) -> Vec<Missing> {
        let resolved = match &request.group_name {
            None => listed(&request.group, &self.hosts),
            Some(name) => match groups.iter().find(|group| group.name == *name) {
                Some(group) => self.resolve(&group.volumes),
                None => return Vec::new(),
            },
        };
        resolved.missing.into_iter().collect()
    }
}

/// The first key or value that can be none.
fn not_a_label(change: &LabelChange) -> Option<&String> {
    change.iter().flat_map(|(key, value)| std::iter::once(key).chain(value)).find(|word| !is_label(word))
}

#[expect(clippy::missing_errors_doc, reason = "each fails as CoordinatorError says")]
impl Coordinator {
    /// Asks every host what it has.
    pub(super) async fn view(&self) -> Result<View, CoordinatorError> {
        let labels = self.with_catalogue(|catalogue| catalogue.labels()).await?;
        let answers = join_all(self.hosts.values().map(|host| host.describe())).await;
        let hosts = self.hosts.iter().zip(answers).map(|((name, host), answer)| {
            let volumes = answer.map_err(|why| why.to_string()).map(|description| {
                let HostDescription { volumes, unserved, .. } = description;
                let served = volumes.into_iter().map(|volume| (volume.name, None));
                served.chain(unserved.into_iter().map(|(name, why)| (name, Some(why)))).collect()
            });
            Seen { host: name.clone(), labels: host.labels().clone(), volumes }
        });
        Ok(View { hosts: hosts.collect(), labels })
    }

    /// Changes a volume's labels, and answers with what it has then, its host's not among them.
    pub async fn label_volume(
        &self,
        volume: Member,
        change: LabelChange,
    ) -> Result<Labels, CoordinatorError> {
        if let Some(wrong) = not_a_label(&change) {
            return Err(CoordinatorError::Request(format!(
                "`{wrong}` cannot be part of a label: keys and values have up to 64 letters, digits, `-`, `_` or `.`, \
                 the first a letter or digit"
            )));
        }
        // To take labels from what is gone is fine.
        let gives = change.values().any(Option::is_some);
        if gives {
            let HostDescription { volumes, unserved, .. } = self.host(&volume.host)?.describe().await?;
            let there = volumes.iter().any(|there| there.name == volume.volume);
            if !there && !unserved.contains_key(&volume.volume) {
                return Err(CoordinatorError::Unknown(format!(
                    "host {} has no volume {}; `coeval volume list` shows what there is",
                    volume.host, volume.volume
                )));
            }
        }
        self.with_catalogue(move |catalogue| catalogue.change_labels(&volume, &change)).await
    }

    /// Stores a group, and says what it means now.
    pub async fn add_group(&self, group: Group) -> Result<GroupStatus, CoordinatorError> {
        if !is_name(&group.name) {
            return Err(CoordinatorError::Request(format!(
                "`{}` cannot be a group's name: it has up to 64 letters, digits, `-`, `_` or `.`, the first a letter \
                 or digit",
                group.name
            )));
        }
        if let Which::List(list) = &group.volumes {
            if list.is_empty() {
                return Err(CoordinatorError::Request(
                    "a group has at least one volume; list some".to_owned(),
                ));
            }
            for member in list {
                self.host(&member.host)?;
            }
        }
        let stored = group.clone();
        self.with_catalogue(move |catalogue| catalogue.add_group(&stored)).await?;
        Ok(self.view().await?.status(group))
    }

    /// Forgets a group, unless a schedule needs it; its snapshots stay.
    pub async fn remove_group(&self, name: &str) -> Result<(), CoordinatorError> {
        let schedules = self.with_catalogue(|catalogue| catalogue.schedules()).await?;
        let user = schedules.iter().find(|it| it.schedule.request.group_name.as_deref() == Some(name));
        if let Some(user) = user {
            return Err(CoordinatorError::Conflict(format!(
                "schedule {} takes group {name}; delete the schedule first",
                user.schedule.name
            )));
        }
        let name = name.to_owned();
        self.with_catalogue(move |catalogue| catalogue.remove_group(&name)).await
    }

    /// All groups, by name.
    pub async fn groups(&self) -> Result<Vec<Group>, CoordinatorError> {
        self.with_catalogue(|catalogue| catalogue.groups()).await
    }

    /// A group and what it means now.
    pub async fn group(&self, name: &str) -> Result<GroupStatus, CoordinatorError> {
        let name = name.to_owned();
        let group = self.with_catalogue(move |catalogue| catalogue.group(&name)).await?;
        Ok(self.view().await?.status(group))
    }

    /// A group's members, all of them: a snapshot of some would not be one of the group.
    pub(super) async fn whole_group(&self, name: &str) -> Result<Vec<Member>, CoordinatorError> {
        let GroupStatus { members, missing, .. } = self.group(name).await?;
        if !missing.is_empty() {
            let mut named: Vec<_> = missing.iter().take(NAMED).map(ToString::to_string).collect();
            if missing.len() > NAMED {
                named.push(format!("and {} more", missing.len() - NAMED));
            }
            return Err(CoordinatorError::Incomplete(format!(
                "group {name} is not whole, so no snapshot of it is taken ({})",
                named.join("; ")
            )));
        }
        if members.is_empty() {
            return Err(CoordinatorError::Request(format!(
                "group {name} has no member now; `coeval volume label` gives volumes the labels that it asks for"
            )));
        }
        Ok(members)
    }
}
