use serde_json::json;

use super::*;

/// As QEMU 10.0 answers, without what is not asked for.
fn query_block() -> Value {
    json!([
        {"device": "", "qdev": "/machine/peripheral/vda/virtio-backend", "type": "unknown", "inserted": {
            "ro": false, "node-name": "coeval-1-0", "drv": "qcow2",
            "cache": {"no-flush": false, "direct": true, "writeback": true},
            "image": {
                "filename": "/vm/vda-1.qcow2", "format": "qcow2", "virtual-size": 16_777_216,
                "backing-image": {"filename": "/vm/base.img", "format": "raw", "virtual-size": 16_777_216}
            }
        }},
        {"device": "cd0", "qdev": "/machine/unattached/device[23]", "type": "unknown", "removable": true},
        {"device": "ro", "qdev": "", "type": "unknown", "inserted": {
            "ro": true, "node-name": "n", "cache": {"no-flush": false, "direct": false},
            "image": {"filename": "/vm/x", "format": "raw", "virtual-size": 1}
        }},
        {"device": "net", "qdev": "scsi0-0", "type": "unknown", "inserted": {
            "ro": false, "node-name": "n", "cache": {"no-flush": false, "direct": false},
            "image": {"filename": "nbd://localhost:10809/data", "format": "raw", "virtual-size": 1}
        }}
    ])
}

#[test]
fn a_disk_is_found_by_its_devices_id() {
    let found = find_disk(&query_block(), "vda").unwrap();
    let expected = Disk {
        node: "coeval-1-0".to_owned(),
        size: 16 << 20,
        direct: true,
        no_flush: false,
        images: vec![
            Image { file: "/vm/vda-1.qcow2".into(), format: "qcow2".to_owned() },
            Image { file: "/vm/base.img".into(), format: "raw".to_owned() },
        ],
    };
    assert_eq!(found, expected);
}

#[test]
fn a_disk_that_cannot_be_snapshotted_is_refused_with_a_sentence() {
    for (name, sentence) in [
        ("vdb", "no disk vdb; it has: vda, device[23], ro, scsi0-0"),
        ("cd0", "drive cd0 is empty"),
        ("ro", "read-only"),
        ("scsi0-0", "snapshot that volume"),
    ] {
        let refused = find_disk(&query_block(), name).unwrap_err();
        assert!(refused.contains(sentence), "{refused}");
    }
    assert!(find_disk(&json!({}), "vda").is_err());
}

#[test]
fn an_images_node_is_not_that_of_its_file() {
    let nodes = json!([
        {"node-name": "f", "drv": "file", "image": {"filename": "/vm/base.img"}},
        {"node-name": "#block7", "drv": "raw", "image": {"filename": "/vm/base.img"}}
    ]);
    assert_eq!(find_node(&nodes, Path::new("/vm/base.img")).as_deref(), Some("#block7"));
    assert_eq!(find_node(&nodes, Path::new("/vm/other")), None);
}

#[test]
fn a_described_image_is_its_file() {
    let described = r#"json:{"backing": {"driver": "qcow2", "file": {"driver": "file", "filename": "/vm/vda"}}, "driver": "qcow2", "file": {"driver": "file", "filename": "/vm/vda-6.qcow2"}}"#;
    assert_eq!(file_of(described), Path::new("/vm/vda-6.qcow2"));
    assert_eq!(file_of("/vm/base.img"), Path::new("/vm/base.img"));
    for other in ["json:{", "json:{}", "json:[]", "json:{\"file\": \"node0\"}"] {
        assert_eq!(file_of(other), Path::new(other));
    }
}

fn set(images: &[&str]) -> BTreeSet<PathBuf> {
    images.iter().map(PathBuf::from).collect()
}

#[test]
fn what_no_snapshot_needs_is_merged_from_the_bottom_and_never_the_top() {
    // From the top: `3` takes writes; 2, 1 and 0 are below it.
    let chain: Vec<PathBuf> = ["3", "2", "1", "0"].iter().map(PathBuf::from).collect();
    let merge = |snapshots: &[&str], elsewhere: &[&str]| {
        mergeable(&chain, &set(snapshots), &set(elsewhere))
            .map(|(upper, lower)| format!("{}>{}", upper.display(), lower.display()))
    };
    assert_eq!(merge(&["2", "1", "0"], &[]), None, "every image is a snapshot's");
    assert_eq!(merge(&["2", "1"], &[]).as_deref(), Some("1>0"), "the oldest was deleted");
    assert_eq!(merge(&["2", "0"], &[]).as_deref(), Some("2>1"), "one in the middle was");
    assert_eq!(merge(&["1", "0"], &[]), None, "the newest was: it waits for the next");
    assert_eq!(merge(&[], &[]).as_deref(), Some("1>0"));
    assert_eq!(merge(&["2", "1"], &["0"]), None, "another chain stands on it");
    assert_eq!(merge(&["2", "0"], &["2", "1", "0"]), None);
    assert_eq!(mergeable(&chain[..1], &set(&[]), &set(&[])), None);
    assert_eq!(mergeable(&[], &set(&[]), &set(&[])), None);
}
