//! A catalogue made again from the records that the hosts keep.
//!
//! What is believed: a record that all hosts of its snapshot keep alike, whose evidence, each host's own part of it put
//! together, proves the cut again, and whose volumes all have the snapshot. A host that is not configured any more takes
//! its part with it: then the others' is proved. Everything else becomes a snapshot to be deleted, with the reason:
//! parts of it may stand on hosts, and nobody should take it for one. Schedules, groups, labels and stories are not kept
//! by hosts.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde::Serialize;

use super::CoordinatorError;
use super::library::volumes;
use crate::catalogue::Catalogue;
use crate::certificate::{Evidence, HostEvidence, certify};
use crate::messages::{Manifest, Member, SnapshotState, Verdict};
use crate::orders::AttemptId;
use crate::record::{Record, VERSION};
use crate::remote::RemoteHost;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// The snapshots that stand, by name.
    pub standing: Vec<String>,
    /// Those that are to be deleted, and why.
    pub doubtful: BTreeMap<String, String>,
    /// Snapshots of volumes that no record is about, `HOST/VOLUME@SNAPSHOT`: what a restore replaced, for one.
    pub unknown: Vec<String>,
}

/// What one host keeps and has.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) records: BTreeMap<AttemptId, Record>,
    /// Volume and snapshot.
    pub(super) snapshots: BTreeSet<(String, String)>,
}

/// A row to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) attempt: AttemptId,
    pub(super) record: Record,
    /// Why it does not stand.
    pub(super) doubt: Option<String>,
}

/// Fills an empty catalogue from what `hosts` keep. All of them have to answer.
///
/// # Errors
/// When the catalogue is not empty, a host does not answer, or a record is of a later version of this program.
pub async fn rebuild(catalogue: &Catalogue, hosts: &[RemoteHost]) -> Result<Rebuilt, CoordinatorError> {
    if !catalogue.list()?.is_empty() {
        return Err(CoordinatorError::Conflict(
            "the catalogue holds snapshots; to rebuild it, move the files catalogue.sqlite* out of the state directory \
             first"
                .to_owned(),
        ));
    }
    let kept = join_all(hosts.iter().map(ask)).await;
    let kept: BTreeMap<String, Kept> = hosts
        .iter()
        .map(|host| host.name().to_owned())
        .zip(kept)
        .map(|(host, kept)| Ok((host, kept?)))
        .collect::<Result<_, CoordinatorError>>()?;
    let mut rebuilt = Rebuilt { unknown: unknown(&kept), ..Rebuilt::default() };
    let (standing, doubtful): (Vec<Row>, Vec<Row>) =
        judge(&kept).into_iter().partition(|row| row.doubt.is_none());
    for Row { attempt, mut record, doubt } in standing.into_iter().chain(doubtful) {
        let name = record.snapshot.name.clone();
        record.snapshot.state =
            match (&doubt, record.snapshot.manifest.as_ref().map(|manifest| manifest.verdict)) {
                (Some(_), _) => SnapshotState::Deleting,
                (None, Some(Verdict::Consistent)) => SnapshotState::Complete,
                (None, _) => SnapshotState::Inconsistent,
            };
        record.snapshot.why = doubt.clone();
        match (catalogue.restore_row(attempt, &record), doubt) {
            (Ok(()), None) => rebuilt.standing.push(name),
            (Ok(()), Some(why)) => drop(rebuilt.doubtful.insert(name, why)),
            // Only where the name is another's by now.
            (Err(why), _) => {
                drop(rebuilt.doubtful.insert(format!("{name} ({})", record.snapshot.id), why.to_string()))
            }
        }
    }
    Ok(rebuilt)
}

async fn ask(host: &RemoteHost) -> Result<Kept, CoordinatorError> {
    let description = host.describe().await?;
    let snapshots = description
        .volumes
        .iter()
        .flat_map(|volume| volume.snapshots.iter().map(|snapshot| (volume.name.clone(), snapshot.clone())));
    let mut kept = Kept { snapshots: snapshots.collect(), ..Kept::default() };
    for attempt in host.records().await? {
        let record = host.record(attempt).await?;
        if record.version > VERSION {
            return Err(CoordinatorError::Request(format!(
                "host {} keeps records of version {}, and this program reads up to {VERSION}; upgrade coeval on the server",
                host.name(),
                record.version
            )));
        }
        kept.records.insert(attempt, record);
    }
    Ok(kept)
}

/// Which snapshots stand, oldest attempt first.
pub(super) fn judge(hosts: &BTreeMap<String, Kept>) -> Vec<Row> {
    let attempts: BTreeSet<AttemptId> =
        hosts.values().flat_map(|kept| kept.records.keys().copied()).collect();
    let rows = attempts.into_iter().filter_map(|attempt| {
        let records: Vec<&Record> = hosts.values().filter_map(|kept| kept.records.get(&attempt)).collect();
        let digests = |record: &Record| {
            record
                .snapshot
                .manifest
                .as_ref()
                .map_or(0, |it| volumes(it).filter(|(_, digest)| digest.is_some()).count())
        };
        let best = records.iter().max_by_key(|record| (record.complete, digests(record)))?;
        let mut record = (*best).clone();
        record.evidence = whole_evidence(attempt, best, hosts);
        let doubt = doubt(attempt, &record, &records, hosts);
        Some(Row { attempt, record, doubt })
    });
    rows.collect()
}

/// The evidence put together, in the order of the manifest's hosts: each host's part as that host keeps it. Of one that is
/// not configured any more, as others do, if their records are as old as that.
fn whole_evidence(attempt: AttemptId, best: &Record, hosts: &BTreeMap<String, Kept>) -> Option<Evidence> {
    let part = |host: &str| {
        let keeper = hosts.get(host).map_or(Some(best), |kept| kept.records.get(&attempt))?;
        parts(keeper).find(|part| part.host == host).cloned()
    };
    let named = best.snapshot.manifest.iter().flat_map(|manifest| &manifest.hosts);
    Some(best.evidence.as_ref()?.with_hosts(named.filter_map(|host| part(&host.host)).collect()))
}

fn parts(record: &Record) -> impl Iterator<Item = &HostEvidence> {
    record.evidence.iter().flat_map(|evidence| &evidence.hosts)
}

/// Why a snapshot is not to be believed in.
fn doubt(
    attempt: AttemptId,
    best: &Record,
    records: &[&Record],
    hosts: &BTreeMap<String, Kept>,
) -> Option<String> {
    let Some(manifest) = &best.snapshot.manifest else {
        return Some("its record has no manifest".to_owned());
    };
    let contradicts = |part: &HostEvidence| parts(best).any(|it| it.host == part.host && it != part);
    if records.iter().any(|record| plain(record) != plain(best) || parts(record).any(contradicts)) {
        return Some("its hosts keep different records of it".to_owned());
    }
    for (Member { host, volume }, _) in volumes(manifest) {
        match hosts.get(&host) {
            None if !best.complete => {
                return Some(format!("host {host} is not configured, and may not have taken the name"));
            }
            None => {}
            Some(kept) if !kept.snapshots.contains(&(volume.clone(), manifest.name.clone())) => {
                return Some(format!("volume {volume} of host {host} does not have it"));
            }
            Some(kept) if !kept.records.contains_key(&attempt) => {
                return Some(format!("host {host} keeps no record of it"));
            }
            Some(_) if best.evidence.is_some() && parts(best).all(|part| part.host != host) => {
                return Some(format!("host {host} keeps no evidence of it"));
            }
            Some(_) => {}
        }
    }
    let proved = match best.evidence.as_ref().map(certify) {
        None => Err("it has no evidence".to_owned()),
        Some(Ok(_)) => Ok(()),
        Some(Err(refusal)) => Err(refusal.to_string()),
    };
    match (manifest.verdict, proved) {
        (Verdict::Consistent, Err(why)) => Some(format!("its evidence does not prove it: {why}")),
        _ => None,
    }
}

/// What all hosts must keep alike, but for their parts of the evidence. Digests came later, and may be missing on some.
fn plain(record: &Record) -> (Option<Manifest>, Option<Evidence>, String) {
    let mut manifest = record.snapshot.manifest.clone();
    let hosts = manifest.iter_mut().flat_map(|manifest| &mut manifest.hosts);
    hosts.flat_map(|host| &mut host.volumes).for_each(|volume| volume.digest = None);
    let evidence = record.evidence.as_ref().map(|evidence| evidence.with_hosts(Vec::new()));
    (manifest, evidence, record.snapshot.name.clone())
}

pub(super) fn unknown(hosts: &BTreeMap<String, Kept>) -> Vec<String> {
    let known: BTreeSet<(Member, String)> = hosts
        .values()
        .flat_map(|kept| kept.records.values())
        .filter_map(|record| record.snapshot.manifest.as_ref())
        .flat_map(|manifest| volumes(manifest).map(|(member, _)| (member, manifest.name.clone())))
        .collect();
    let all = hosts.iter().flat_map(|(host, kept)| {
        kept.snapshots.iter().map(|(volume, snapshot)| {
            (Member { host: host.clone(), volume: volume.clone() }, snapshot.clone())
        })
    });
    all.filter(|one| !known.contains(one)).map(|(member, snapshot)| format!("{member}@{snapshot}")).collect()
}
