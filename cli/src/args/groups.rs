//! The command line's grammar: labels and saved groups.

use clap::{Args, Subcommand};
use snapshot::groups::Selector;
use snapshot::messages::Member;

use super::{Remote, member};

/// `coeval group …`
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Save a group, by labels or by a list, and show what it means now
    Create(CreateGroupArgs),
    /// List groups
    List(Remote),
    /// Show which volumes a snapshot of a group would take now, and what is missing
    Show(GroupArgs),
    /// Forget a group; its snapshots stay
    Delete(GroupArgs),
}

/// `coeval group create`
#[derive(Debug, Args)]
pub struct CreateGroupArgs {
    /// Its name
    pub name: String,
    /// The volumes with these labels, their own or their host's, whenever it is used, such as app=shop,tier!=scratch
    #[arg(long, value_name = "LABELS", required_unless_present = "list", conflicts_with = "list")]
    pub selector: Option<Selector>,
    /// This volume (may be repeated)
    #[arg(long = "volume", value_name = "HOST/VOLUME", value_parser = member)]
    pub list: Vec<Member>,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// A command about one group.
#[derive(Debug, Args)]
pub struct GroupArgs {
    /// The group's name
    pub group: String,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval volume label`
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// The volume
    #[arg(value_name = "HOST/VOLUME", value_parser = member)]
    pub volume: Member,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = label_change)]
    pub labels: Vec<(String, Option<String>)>,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), None)),
        (None, None) => Err(format!("`{text}` neither sets a label (`app=shop`) nor removes one (`app-`)")),
    }
}

/// A label of a new volume.
///
/// # Errors
/// When it is none, in a sentence.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(format!("`{text}` is no label; write KEY=VALUE, such as app=shop")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let pair = |key: &str, value: Option<&str>| Ok((key.to_owned(), value.map(str::to_owned)));
        assert_eq!(label_change("app=shop"), pair("app", Some("shop")));
        assert_eq!(label_change("app=a-"), pair("app", Some("a-")));
        assert_eq!(label_change("app-"), pair("app", None));
        assert!(label_change("app").is_err() && label("app-").is_err());
    }
}
