//! What QEMU says of a machine's disks, and which of their images can be merged. Pure.
//!
//! A disk is a chain of images: the top one takes its writes, each of those below holds what was written before the next
//! was put on top. A snapshot is an image below the top, with all that is below it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// A disk's state as QEMU has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The block node at the top.
    pub node: String,
    /// In bytes.
    pub size: u64,
    /// Whether the host's page cache is bypassed.
    pub direct: bool,
    /// Whether flushes are ignored.
    pub no_flush: bool,
    /// Its images, the top one first.
    pub images: Vec<Image>,
}

/// An image of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As QEMU names it.
    pub file: PathBuf,
    /// Such as `qcow2` or `raw`.
    pub format: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Device {
    device: String,
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: String,
    ro: bool,
    cache: Cache,
    image: Described,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cache {
    direct: bool,
    no_flush: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Described {
    filename: String,
    format: String,
    virtual_size: u64,
    backing_image: Option<Box<Described>>,
}

/// Finds a disk in the answer to `query-block`: by the id of its device, or of its drive.
///
/// # Errors
/// A sentence when there is no such disk, or it cannot be snapshotted by overlays.
pub fn find_disk(query_block: &Value, name: &str) -> Result<Disk, String> {
    let devices: Vec<Device> = Vec::deserialize(query_block)
        .map_err(|error| format!("QEMU describes its disks in unknown terms: {error}"))?;
    let found = devices.iter().find(|device| {
        device.device == name
            || device.qdev.as_ref().is_some_and(|path| path.split('/').any(|part| part == name))
    });
    let Some(found) = found else {
        let known: Vec<&str> = devices.iter().filter_map(Device::name).collect();
        return Err(format!("the virtual machine has no disk {name}; it has: {}", known.join(", ")));
    };
    let inserted = found.inserted.as_ref().ok_or_else(|| format!("drive {name} is empty"))?;
    if inserted.ro {
        return Err(format!("disk {name} is read-only; leave it out of `disks`"));
    }
    let mut images = Vec::new();
    let mut image = Some(&inserted.image);
    while let Some(Described { filename, format, backing_image, .. }) = image {
        images.push(Image { file: file_of(filename), format: format.clone() });
        image = backing_image.as_deref();
    }
    if !images[0].file.is_absolute() {
        return Err(format!(
            "disk {name} is {}, which is no image file named by an absolute path; if it is an export of Coeval, snapshot that volume",
            images[0].file.display()
        ));
    }
    Ok(Disk {
        node: inserted.node_name.clone(),
        size: inserted.image.virtual_size,
        direct: inserted.cache.direct,
        no_flush: inserted.cache.no_flush,
        images,
    })
}

/// The file in QEMU's name for an image. Where the image below is opened by another name than the image itself has for it,
/// such as a link's, that name is a description: `json:{…}`.
fn file_of(name: &str) -> PathBuf {
    let description = name.strip_prefix("json:").and_then(|json| serde_json::from_str(json).ok());
    let mut node: Option<&Value> = description.as_ref();
    while let Some(described) = node {
        if let Some(file) = described["filename"].as_str() {
            return PathBuf::from(file);
        }
        node = described.get("file");
    }
    PathBuf::from(name)
}

impl Device {
    fn name(&self) -> Option<&str> {
        let path = self.qdev.as_deref().filter(|path| !path.is_empty()).unwrap_or(&self.device);
        path.split('/').rfind(|part| *part != "virtio-backend")
    }
}

/// Finds the node that opens an image, in the answer to `query-named-block-nodes`: not the one of the file underneath.
pub fn find_node(query_nodes: &Value, file: &Path) -> Option<String> {
    let is_it = |node: &&Value| {
        let image = &node["image"]["filename"];
        image.as_str().is_some_and(|name| file_of(name) == file)
            && !["file", "host_device"].contains(&node["drv"].as_str().unwrap_or_default())
    };
    Some(query_nodes.as_array()?.iter().find(is_it)?["node-name"].as_str()?.to_owned())
}

/// Two images of which the upper one can be written into the lower one, and left out after that: `(upper, lower)`, nearest
/// to the bottom first.
///
/// The lower one must be no snapshot's own image, and neither may be among those `kept` as they are. The top is no upper one: to
/// leave it out, writes would have to change over to the lower image, and no order of that and of noting it survives every
/// crash. It is merged once there is another on top of it.
pub fn mergeable(
    chain: &[PathBuf],
    snapshots: &BTreeSet<PathBuf>,
    kept: &BTreeSet<PathBuf>,
) -> Option<(PathBuf, PathBuf)> {
    let below_top = chain.get(1..)?;
    let pairs = below_top.iter().zip(below_top.iter().skip(1));
    let free = |(upper, lower): &(&PathBuf, &PathBuf)| {
        !snapshots.contains(*lower) && !kept.contains(*lower) && !kept.contains(*upper)
    };
    pairs.rev().find(free).map(|(upper, lower)| (upper.clone(), lower.clone()))
}

#[cfg(test)]
mod tests;
