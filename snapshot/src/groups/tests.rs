use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn member(text: &str) -> Member {
    let (host, volume) = text.split_once('/').unwrap();
    Member { host: host.to_owned(), volume: volume.to_owned() }
}

/// Host `a` has two volumes, `b` has one that it cannot serve, and `c` does not answer.
fn hosts() -> Vec<Seen> {
    let volumes = |of: &[(&str, Option<&str>)]| {
        Ok(of.iter().map(|(name, why)| ((*name).to_owned(), why.map(str::to_owned))).collect())
    };
    vec![
        Seen {
            host: "a".to_owned(),
            labels: labels(&[("tier", "db")]),
            volumes: volumes(&[("data", None), ("wal", None)]),
        },
        Seen { host: "b".to_owned(), labels: labels(&[]), volumes: volumes(&[("data", Some("torn"))]) },
        Seen {
            host: "c".to_owned(),
            labels: labels(&[("tier", "web")]),
            volumes: Err("it is off".to_owned()),
        },
    ]
}

/// Members, then what is missing: `HOST/VOLUME` or `HOST/*`.
fn words(resolved: &Resolved) -> (Vec<String>, Vec<String>) {
    let members = resolved.members.iter().map(Member::to_string);
    let missing = resolved.missing.iter();
    let missing = missing.map(|it| format!("{}/{}", it.host, it.volume.as_deref().unwrap_or("*")));
    (members.collect(), missing.collect())
}

fn select(selector: &str, own: &[(&str, &[(&str, &str)])]) -> (Vec<String>, Vec<String>) {
    let own = own.iter().map(|(volume, pairs)| (member(volume), labels(pairs))).collect();
    words(&selected(&selector.parse().unwrap(), &hosts(), &own))
}

fn expect(members: &[&str], missing: &[&str]) -> (Vec<String>, Vec<String>) {
    let owned = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect();
    (owned(members), owned(missing))
}

#[test]
fn a_list_says_what_of_it_cannot_be_had() {
    let list = ["a/wal", "a/none", "b/data", "c/data", "z/data"].map(member);
    let resolved = listed(&list, &hosts());
    assert_eq!(words(&resolved), expect(&["a/wal"], &["a/none", "b/data", "c/data", "z/data"]));
    let why: Vec<_> = resolved.missing.iter().map(ToString::to_string).collect();
    assert_eq!(why[0], "a/none: the host has no such volume");
    assert_eq!(why[1], "b/data: it is not served: torn");
    assert_eq!(why[2], "c/data: it is off");
}

#[test]
fn no_list_means_everything() {
    assert_eq!(words(&listed(&[], &hosts())), expect(&["a/data", "a/wal"], &["b/data", "c/*"]));
}

#[test]
fn a_volume_has_its_hosts_labels_and_its_own_win() {
    assert_eq!(select("tier=db", &[]), expect(&["a/data", "a/wal"], &[]));
    assert_eq!(select("tier=db", &[("a/wal", &[("tier", "scratch")])]), expect(&["a/data"], &[]));
    assert_eq!(select("app=shop", &[("a/wal", &[("app", "shop")])]), expect(&["a/wal"], &[]));
    assert_eq!(select("tier=db,app=shop", &[("a/wal", &[("app", "shop")])]), expect(&["a/wal"], &[]));
}

#[test]
fn a_labelled_volume_that_is_gone_or_out_of_reach_is_missing() {
    let shop: &[(&str, &str)] = &[("app", "shop")];
    let own = [("a/gone", shop), ("a/data", shop), ("b/data", shop), ("c/data", shop)];
    assert_eq!(select("app=shop", &own), expect(&["a/data"], &["a/gone", "b/data", "c/data"]));
}

#[test]
fn a_host_out_of_reach_whose_own_labels_fit_may_have_members() {
    assert_eq!(select("tier=web", &[]), expect(&[], &["c/*"]));
    assert_eq!(select("tier=web", &[("c/data", &[("tier", "db")])]), expect(&[], &["c/*"]));
    assert_eq!(
        select("tier=db", &[("c/data", &[("tier", "db")])]),
        expect(&["a/data", "a/wal"], &["c/data"])
    );
}
