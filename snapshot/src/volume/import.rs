//! Volumes that begin as an image: copied, or the image itself, where it lies.
//!
//! # Which files
//!
//! The order names a path on the host, and whoever may give orders is not the one who runs the host. So the path is
//! resolved first, symbolic links and all, and must lie in one of the directories that the host's configuration lists.
//! What is opened then is what was resolved, or it is refused. `qemu-img` gets the open file, not the path, and only
//! formats that are a file by themselves: an image that names other files (a backing file, extents) is refused. Formats
//! are never guessed: a raw image is what its writer made it, and can look like any other format.
//!
//! # Order of writes
//!
//! As for any volume that is being made (`unfinished.rs`). An image that is taken over gets a second name in the
//! volume's directory, and loses its first one when the manifest is durable. Whatever happens in between, one of them is
//! there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use serde_json::Value;
use timesync::clock::HostClock;
use tracing::warn;

use super::layer::{BASE, Layer, data_name};
use super::manifest::Manifest;
use super::resize::check_size;
use super::storage::{Directory, Disk};
use super::unfinished::Unfinished;
use super::{BLOCK, Volume, VolumeError, at_path};

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// What `qemu-img` is asked to read: formats whose images are one file.
const FORMATS: [&str; 6] = ["qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc"];

/// An image on this host that may become a volume.
#[derive(Debug)]
pub struct Image {
    /// Resolved.
    path: PathBuf,
    file: File,
}

impl Image {
    /// Opens an image, if it lies in one of the directories `allowed`.
    ///
    /// # Errors
    /// [`VolumeError::Import`] if it does not, is no regular file, or cannot be opened.
    pub fn open(path: &Path, allowed: &[PathBuf]) -> Result<Self, VolumeError> {
        let refused = |why: &str| VolumeError::Import { path: path.to_owned(), why: why.to_owned() };
        let failed = |error: io::Error| refused(&error.to_string());
        // The same sentence whether it is there or not: files elsewhere are nobody's business.
        let outside =
            || refused("it does not lie in a directory that `import_from` in the host's configuration lists");
        let resolved = fs::canonicalize(path).ok();
        let directories = allowed.iter().filter_map(|directory| fs::canonicalize(directory).ok());
        let inside = |path: &PathBuf| directories.into_iter().any(|directory| path.starts_with(directory));
        let resolved = resolved.filter(|_| path.is_absolute()).filter(inside).ok_or_else(outside)?;
        // One that is a pipe by now must not make this wait.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&resolved).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(refused("it is no regular file"));
        }
        let opened = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(failed)?;
        if opened != resolved {
            return Err(refused("somebody moves it"));
        }
        Ok(Image { path: resolved, file })
    }

    fn refused(&self, why: impl Into<String>) -> VolumeError {
        VolumeError::Import { path: self.path.clone(), why: why.into() }
    }

    fn failed(&self) -> impl Fn(io::Error) -> VolumeError + '_ {
        |error| self.refused(error.to_string())
    }
}

impl Volume {
    /// Makes a volume with the content of an image, in `format` (raw if none is given), and opens it. Its size is the
    /// image's, rounded up to a multiple of 4096. `progress` hears how many hundredths are done.
    ///
    /// # Errors
    /// If the name is taken or not allowed, the image cannot be read, or the file system fails.
    pub fn create_from(
        root: &Path,
        name: &str,
        image: &Image,
        format: Option<&str>,
        clock: HostClock,
        progress: &dyn Fn(u8),
    ) -> Result<Arc<Volume>, VolumeError> {
        let length = match format {
            None | Some("raw") => raw_length(image, format)?,
            Some(format) => virtual_size(image, format)?,
        };
        let size = length.next_multiple_of(BLOCK);
        check_size(size)?;
        let unfinished = Unfinished::begin(&Directory::new(Arc::new(Disk), root), name)?;
        let directory = unfinished.directory.clone();
        let base = Layer::create(&directory, BASE, size)?;
        let target = directory.path().join(data_name(BASE));
        match format {
            None | Some("raw") => copy(&image.file, length, &base, progress).map_err(at_path(&target))?,
            Some(format) => convert(image, format, &target, progress)?,
        }
        // Opened anew: that syncs it, whoever wrote it.
        let layers = BTreeMap::from([(BASE, Layer::open(&directory, BASE, size)?)]);
        let manifest = Manifest::new(size);
        let locked = unfinished.finish(&manifest)?;
        Volume::start(name, directory, manifest, layers, clock, locked)
    }

    /// Makes a raw image a volume without copying it: it moves into the volume's directory.
    ///
    /// # Errors
    /// If the name is taken or not allowed; if the image lies on another file system, has other names, or its size is
    /// no multiple of 4096; or if the file system fails. The image is where it was then.
    pub fn take_over(
        root: &Path,
        name: &str,
        image: &Image,
        clock: HostClock,
    ) -> Result<Arc<Volume>, VolumeError> {
        let before = image.file.metadata().map_err(image.failed())?;
        let size = raw_length(image, None)?;
        if !size.is_multiple_of(BLOCK) {
            let why = "its size is no multiple of 4096 bytes: copy it with `coeval volume create --from`";
            return Err(image.refused(why));
        }
        check_size(size)?;
        if before.nlink() != 1 {
            let why = "it has other names (hard links), which would show what is written to the volume: remove them";
            return Err(image.refused(why));
        }
        let unfinished = Unfinished::begin(&Directory::new(Arc::new(Disk), root), name)?;
        let directory = unfinished.directory.clone();
        directory.link_from(&image.path, &data_name(BASE)).map_err(|error| match error {
            VolumeError::Io { source, .. } if source.kind() == io::ErrorKind::CrossesDevices => {
                let why = "it lies on another file system or mount than the volumes: copy it with \
                           `coeval volume create --from`, or lay it where they are";
                image.refused(why)
            }
            other => other,
        })?;
        let target = directory.path().join(data_name(BASE));
        let linked = fs::metadata(&target).map_err(at_path(&target))?;
        if (linked.dev(), linked.ino()) != (before.dev(), before.ino()) {
            return Err(image.refused("somebody moves it"));
        }
        let layers = BTreeMap::from([(BASE, Layer::open(&directory, BASE, size)?)]);
        let manifest = Manifest::new(size);
        let locked = unfinished.finish(&manifest)?;
        if let Err(error) = forget(&image.path) {
            warn!(volume = name, %error, "the image is the volume's now and has its former name too; remove that");
        }
        Volume::start(name, directory, manifest, layers, clock, locked)
    }
}

/// Removes a file's name, durably.
fn forget(path: &Path) -> Result<(), VolumeError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let directory = Directory::new(Arc::new(Disk), parent);
    directory.remove(&name.to_string_lossy())?;
    directory.sync()
}

/// The length of a raw image. One of which nobody says that it is raw must not look like an image of QEMU's.
fn raw_length(image: &Image, format: Option<&str>) -> Result<u64, VolumeError> {
    let mut start = [0; 4];
    let read = image.file.read_at(&mut start, 0).map_err(image.failed())?;
    if format.is_none() && start[..read] == *b"QFI\xfb" {
        return Err(
            image.refused("it looks like qcow2: say so with --format qcow2, or --format raw if it is not")
        );
    }
    Ok(image.file.metadata().map_err(image.failed())?.len())
}

/// Copies what is not zero.
fn copy(source: &File, length: u64, target: &Layer, progress: &dyn Fn(u8)) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < length {
        at = match lseek(source, at.cast_signed(), Whence::SeekData) {
            Ok(data) => data.cast_unsigned(),
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = lseek(source, at.cast_signed(), Whence::SeekHole)?.cast_unsigned();
        let count = CHUNK.min(hole.min(length).saturating_sub(at));
        let chunk = &mut buffer[..count as usize];
        source.read_exact_at(chunk, at)?;
        if chunk.iter().any(|&byte| byte != 0) {
            target.write(at, chunk)?;
        }
        at += count;
        progress((at * 100 / length) as u8);
    }
    Ok(())
}

/// `qemu-img` with the image as its standard input: the file that was opened, whatever its path names by now.
fn qemu_img(image: &Image, subcommand: &str) -> Result<Command, VolumeError> {
    let mut command = Command::new("qemu-img");
    command.arg(subcommand).stdin(image.file.try_clone().map_err(image.failed())?);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn could_not_run(image: &Image) -> impl Fn(io::Error) -> VolumeError + '_ {
    |error| match error.kind() {
        io::ErrorKind::NotFound => image.refused("this takes `qemu-img`, which is not installed on the host"),
        _ => image.refused(format!("qemu-img cannot be run: {error}")),
    }
}

/// What `qemu-img` said at last.
fn complaint(image: &Image, stderr: &[u8]) -> VolumeError {
    let stderr = String::from_utf8_lossy(stderr);
    image.refused(stderr.trim().lines().last().unwrap_or("qemu-img failed").to_owned())
}

/// The size of what an image shows, in bytes, if it needs no other file for that.
fn virtual_size(image: &Image, format: &str) -> Result<u64, VolumeError> {
    if !FORMATS.contains(&format) {
        return Err(image.refused(format!("`{format}` is none of the formats raw, {}", FORMATS.join(", "))));
    }
    let mut command = qemu_img(image, "info")?;
    command.args(["--output=json", "-f", format, "/dev/stdin"]);
    let output = command.output().map_err(could_not_run(image))?;
    if !output.status.success() {
        return Err(complaint(image, &output.stderr));
    }
    let info = serde_json::from_slice(&output.stdout);
    let info: Value = info.map_err(|_| image.refused("qemu-img says nothing about it that can be read"))?;
    if let Some(why) = needs_more(&info) {
        return Err(image.refused(format!("{why}: convert it to an image that stands by itself")));
    }
    info["virtual-size"].as_u64().ok_or_else(|| image.refused("qemu-img does not say how large it is"))
}

/// Why an image is not complete in itself, from what `qemu-img info` says.
fn needs_more(info: &Value) -> Option<&'static str> {
    let more = &info["format-specific"]["data"];
    let kind = more["create-type"].as_str();
    if !info["backing-filename"].is_null() {
        Some("it has a backing file")
    } else if !more["data-file"].is_null() {
        Some("its data is in another file")
    } else if kind.is_some_and(|kind| !["monolithicSparse", "streamOptimized"].contains(&kind)) {
        Some("its data is in other files")
    } else if info["encrypted"].as_bool() == Some(true) {
        Some("it is encrypted")
    } else {
        None
    }
}

/// Has `qemu-img` write an image's content over a file of zeros.
fn convert(image: &Image, format: &str, target: &Path, progress: &dyn Fn(u8)) -> Result<(), VolumeError> {
    let mut command = qemu_img(image, "convert")?;
    command.args(["-p", "-n", "--target-is-zero", "-f", format, "-O", "raw", "/dev/stdin"]).arg(target);
    let mut child = command.spawn().map_err(could_not_run(image))?;
    let mut said = Vec::new();
    for byte in child.stdout.take().into_iter().flat_map(|stdout| io::BufReader::new(stdout).bytes()) {
        match byte.map_err(image.failed())? {
            b'\r' | b'\n' => {
                hundredths(&said).into_iter().for_each(progress);
                said.clear();
            }
            byte => said.push(byte),
        }
    }
    let output = child.wait_with_output().map_err(image.failed())?;
    if output.status.success() { Ok(()) } else { Err(complaint(image, &output.stderr)) }
}

/// The whole number in a line of `qemu-img`'s progress: `    (12.34/100%)`.
fn hundredths(line: &[u8]) -> Option<u8> {
    let line = std::str::from_utf8(line).ok()?;
    line.trim().strip_prefix('(')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_read() {
        assert_eq!(hundredths(b"    (12.34/100%)"), Some(12));
        assert_eq!(hundredths(b"    (100.00/100%)"), Some(100));
        assert_eq!(hundredths(b"qemu-img: warning"), None);
    }

    #[test]
    fn images_that_name_other_files_are_recognised() {
        let alone =
            json!({"virtual-size": 1, "format-specific": {"data": {"create-type": "streamOptimized"}}});
        assert_eq!(needs_more(&alone), None);
        for other in [
            json!({"backing-filename": "/etc/shadow"}),
            json!({"format-specific": {"data": {"data-file": "/etc/shadow"}}}),
            json!({"format-specific": {"data": {"create-type": "monolithicFlat"}}}),
            json!({"encrypted": true}),
        ] {
            assert!(needs_more(&other).is_some(), "{other}");
        }
    }

    fn content(volume: &Arc<Volume>) -> Vec<u8> {
        let device = volume.attach().unwrap();
        let mut content = vec![0; device.size() as usize];
        device.read(0, &mut content).result.unwrap();
        content
    }

    #[test]
    fn an_image_elsewhere_is_refused_under_whatever_name() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("images"), directory.path().join("secret"));
        fs::create_dir(&inside).unwrap();
        fs::write(&outside, [1; 4096]).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let open = |path: PathBuf| Image::open(&path, std::slice::from_ref(&inside));
        let dotted = inside.join("../secret");
        for path in [outside.clone(), inside.join("link"), dotted, inside.join("absent"), "images/x".into()] {
            let why = open(path.clone()).unwrap_err().to_string();
            assert!(why.contains("import_from"), "{}: {why}", path.display());
        }
        assert!(open(inside.clone()).unwrap_err().to_string().contains("no regular file"));
        assert!(Image::open(&outside, &[]).is_err(), "nothing is allowed unless somebody allowed it");
        fs::write(inside.join("good"), [1; 4096]).unwrap();
        open(inside.join("good")).unwrap();
    }

    #[test]
    fn an_image_is_copied_with_its_holes_or_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volumes");
        fs::create_dir(&root).unwrap();
        let path = directory.path().join("image");
        let file = File::create(&path).unwrap();
        file.write_all_at(&[7; 5000], (3 << 20) + 100).unwrap();
        file.set_len((8 << 20) + 1).unwrap();
        let image = || Image::open(&path, &[directory.path().to_owned()]).unwrap();
        let mut expected = fs::read(&path).unwrap();

        let copied = Volume::create_from(&root, "copy", &image(), None, HostClock::real(), &|_| {}).unwrap();
        expected.resize((8 << 20) + 4096, 0);
        assert!(content(&copied) == expected);
        assert!(copied.describe().allocated < 1 << 20, "holes stay holes");
        assert_eq!(fs::read(&path).unwrap().len(), (8 << 20) + 1, "the image stays as it was");

        let take_over = |name: &str| Volume::take_over(&root, name, &image(), HostClock::real());
        assert!(take_over("a").unwrap_err().to_string().contains("no multiple of 4096"));
        file.set_len(8 << 20).unwrap();
        assert!(matches!(take_over("copy"), Err(VolumeError::Exists { .. })));
        fs::hard_link(&path, directory.path().join("other")).unwrap();
        assert!(take_over("a").unwrap_err().to_string().contains("hard links"));
        fs::remove_file(directory.path().join("other")).unwrap();
        let taken = take_over("a").unwrap();
        expected.truncate(8 << 20);
        assert!(content(&taken) == expected);
        assert!(!path.exists());
        drop(taken);
        assert_eq!(Volume::names(&root).unwrap(), ["a", "copy"]);
        assert!(content(&Volume::open(&root, "a", HostClock::real()).unwrap()) == expected);
    }

    #[test]
    fn what_looks_like_an_image_of_qemus_is_not_copied_unless_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let mut bytes = vec![0; 8192];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        fs::write(&path, &bytes).unwrap();
        let image = Image::open(&path, &[directory.path().to_owned()]).unwrap();
        let create = |name: &str, format| {
            Volume::create_from(directory.path(), name, &image, format, HostClock::real(), &|_| {})
        };
        assert!(create("a", None).unwrap_err().to_string().contains("--format qcow2"));
        assert!(create("a", Some("luks")).unwrap_err().to_string().contains("none of the formats"));
        assert!(content(&create("a", Some("raw")).unwrap()) == bytes);
    }
}
