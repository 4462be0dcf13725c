//! A catalogue that was lost, made again from what hosts keep.

use std::collections::BTreeMap;

use super::super::rebuild::{Kept, Row, judge, unknown};
use super::*;
use crate::certificate::HostEvidence;
use crate::record::Record;

/// What three honest hosts keep of one snapshot, once its digests are there.
async fn kept() -> (BTreeMap<String, Kept>, Record, Uuid) {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let manifest = coordinator.create(timed(), |_| {}).await.unwrap();
    eventually(async || fleet.hosts.iter().all(|host| host.record().is_some_and(|record| record.complete)))
        .await;
    let attempt = coordinator.catalogue.attempt_of(manifest.id).unwrap().unwrap();
    let records: Vec<Record> = fleet.hosts.iter().map(|host| host.record().unwrap()).collect();
    let of = |record: &Record| Kept {
        records: [(attempt, record.clone())].into(),
        snapshots: [("data".to_owned(), "s1".to_owned())].into(),
    };
    let hosts = ["a", "b", "c"].into_iter().zip(&records);
    let kept = hosts.map(|(name, record)| (name.to_owned(), of(record))).collect();
    (kept, coordinator.catalogue.record(manifest.id).unwrap(), attempt)
}

fn doubt(hosts: &BTreeMap<String, Kept>) -> String {
    let rows = judge(hosts);
    assert_eq!(rows.len(), 1);
    rows[0].doubt.clone().unwrap_or_default()
}

#[tokio::test]
async fn what_all_hosts_keep_alike_and_the_evidence_proves_stands() {
    let (hosts, record, attempt) = kept().await;
    assert!(
        record.snapshot.manifest.iter().flat_map(|it| &it.hosts).all(|host| host.volumes[0].digest.is_some())
    );
    assert_eq!(judge(&hosts), [Row { attempt, record, doubt: None }]);
    assert_eq!(unknown(&hosts), [""; 0]);
}

#[tokio::test]
async fn what_is_not_whole_or_not_proved_is_doubtful() {
    let (hosts, whole, attempt) = kept().await;
    let with = |change: &dyn Fn(&mut BTreeMap<String, Kept>)| {
        let mut hosts = hosts.clone();
        change(&mut hosts);
        doubt(&hosts)
    };
    let record = |hosts: &mut BTreeMap<String, Kept>, host: &str, change: &dyn Fn(&mut Record)| {
        change(hosts.get_mut(host).unwrap().records.get_mut(&attempt).unwrap());
    };
    let lost = with(&|hosts| hosts.get_mut("b").unwrap().snapshots.clear());
    assert_eq!(lost, "volume data of host b does not have it");
    let forgot = with(&|hosts| hosts.get_mut("b").unwrap().records.clear());
    assert_eq!(forgot, "host b keeps no record of it");
    let strip = |it: &mut Record| it.evidence.as_mut().unwrap().hosts.clear();
    assert_eq!(with(&|hosts| record(hosts, "b", &strip)), "host b keeps no evidence of it");
    let other = with(&|hosts| {
        record(hosts, "b", &|it| it.evidence.as_mut().unwrap().released_nonces = vec![attempt])
    });
    assert_eq!(other, "its hosts keep different records of it");
    let late = |part: &mut HostEvidence| part.readings.p = part.readings.p + Nanos::from_millis(1);
    let wrong = with(&|hosts| record(hosts, "b", &|it| late(&mut it.evidence.as_mut().unwrap().hosts[0])));
    assert!(wrong.starts_with("its evidence does not prove it: "), "{wrong}");
    // As records of version 1 are: with everybody's evidence.
    let with_whole = |change: &dyn Fn(&mut Record)| {
        with(&|hosts| {
            for host in ["a", "b", "c"] {
                record(hosts, host, &|it| it.evidence.clone_from(&whole.evidence));
            }
            record(hosts, "b", change);
        })
    };
    assert_eq!(with_whole(&|_| ()), "");
    let forged = with_whole(&|it| late(&mut it.evidence.as_mut().unwrap().hosts[1]));
    assert_eq!(forged, "its hosts keep different records of it");
    let bare = with(&|hosts| {
        for host in ["a", "b", "c"] {
            record(hosts, host, &|it| it.evidence = None);
        }
    });
    assert_eq!(bare, "its evidence does not prove it: it has no evidence");
    // A host that is not configured any more is believed to have it only if it once was complete.
    let gone = |complete: bool| {
        with(&|hosts| {
            hosts.remove("c");
            for host in ["a", "b"] {
                record(hosts, host, &|it| it.complete = complete);
            }
        })
    };
    assert_eq!(gone(true), "");
    assert!(gone(false).starts_with("host c is not configured"), "{}", gone(false));
    // One that only got what was handed out before the name was everywhere is as good as the others.
    assert_eq!(with(&|hosts| record(hosts, "a", &|it| it.complete = false)), "");
}

#[tokio::test]
async fn a_snapshot_without_a_record_is_only_named() {
    let (mut hosts, _, _) = kept().await;
    hosts.get_mut("b").unwrap().snapshots.insert(("data".to_owned(), "before-s1".to_owned()));
    assert_eq!(unknown(&hosts), ["b/data@before-s1"]);
}

#[tokio::test]
async fn a_full_catalogue_is_not_written_over() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    coordinator.create(timed(), |_| {}).await.unwrap();
    let error = rebuild(&coordinator.catalogue, &[]).await.unwrap_err();
    assert!(error.status() == 409 && error.to_string().contains("move the files"), "{error}");
}
