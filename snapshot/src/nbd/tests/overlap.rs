//! Requests that wait for the disk, and those behind them.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

/// A device whose flushes say that they have begun, and last until they are told to end.
struct SlowDisk {
    begun: Mutex<Sender<()>>,
    end: Mutex<Receiver<()>>,
}

impl Device for SlowDisk {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, _offset: u64, buffer: &mut [u8]) -> Outcome {
        buffer.fill(7);
        Outcome::now(Ok(()))
    }

    fn write(&self, _offset: u64, _data: &[u8], fua: bool) -> Outcome {
        if fua { self.flush() } else { Outcome::now(Ok(())) }
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _may_punch: bool, _fua: bool) -> Outcome {
        Outcome::now(Ok(()))
    }

    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> Outcome {
        Outcome::now(Ok(()))
    }

    fn flush(&self) -> Outcome {
        self.begun.lock().unwrap().send(()).unwrap();
        self.end.lock().unwrap().recv().unwrap();
        Outcome::now(Ok(()))
    }
}

struct OneDisk(Arc<SlowDisk>);

impl Exports for OneDisk {
    fn list(&self) -> Vec<String> {
        vec!["vol".to_owned()]
    }

    fn open(&self, _name: &str) -> Option<Arc<dyn Device>> {
        Some(Arc::clone(&self.0) as Arc<dyn Device>)
    }
}

struct Slow {
    pipe: UnixStream,
    begun: Receiver<()>,
    end: Sender<()>,
    server: Server,
    _directory: TempDir,
}

fn slow() -> Slow {
    let ((begins, begun), (end, ends)) = (channel(), channel());
    let disk = Arc::new(SlowDisk { begun: Mutex::new(begins), end: Mutex::new(ends) });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let endpoint = Endpoint::Unix(path.clone());
    let server = Server::bind(&[endpoint], Arc::new(OneDisk(disk)), HostClock::real()).unwrap();
    Slow { pipe: connect(&path), begun, end, server, _directory: directory }
}

/// A connection on which requests may be sent.
fn connect(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(&option_bytes(option::EXPORT_NAME, b"vol")).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn read(pipe: &mut UnixStream, cookie: u64) {
    assert_eq!(reply(pipe), (cookie, Ok(())));
    let mut data = [0; 5];
    pipe.read_exact(&mut data).unwrap();
    assert_eq!(data, [7; 5]);
}

#[test]
fn a_flush_holds_nobody_up() {
    let Slow { mut pipe, begun, end, server, _directory } = slow();
    for _ in 0..20 {
        // Behind it in the same segment, and later.
        let flush = request(command::FLUSH, 0, 1, 0, 0);
        let together =
            [flush, request(command::READ, 0, 2, 0, 5), request(command::READ, 0, 3, 0, 5)].concat();
        pipe.write_all(&together).unwrap();
        begun.recv().unwrap();
        read(&mut pipe, 2);
        read(&mut pipe, 3);
        for cookie in 4..10 {
            pipe.write_all(&request(command::READ, 0, cookie, 0, 5)).unwrap();
            read(&mut pipe, cookie);
        }
        // Begun before the end of the flush, completed after it.
        let late = request(command::READ, 0, 10, 0, 5);
        pipe.write_all(&late[..10]).unwrap();
        end.send(()).unwrap();
        assert_eq!(reply(&mut pipe), (1, Ok(())));
        pipe.write_all(&late[10..]).unwrap();
        read(&mut pipe, 10);
    }
    drop(server);
}

#[test]
fn replies_longer_than_any_buffer_leave_during_a_flush() {
    // The server last: where this fails, it would wait for the disk.
    let Slow { server, mut pipe, begun, end, _directory } = slow();
    let reads = (2..10).map(|cookie| request(command::READ, 0, cookie, 0, 1 << 20));
    let together = std::iter::once(request(command::FLUSH, 0, 1, 0, 0)).chain(reads);
    pipe.write_all(&together.collect::<Vec<_>>().concat()).unwrap();
    begun.recv().unwrap();
    for cookie in 2..10 {
        assert_eq!(reply(&mut pipe), (cookie, Ok(())));
        pipe.read_exact(&mut vec![0; 1 << 20]).unwrap();
    }
    end.send(()).unwrap();
    assert_eq!(reply(&mut pipe), (1, Ok(())));
    drop(server);
}

#[test]
fn a_second_request_for_the_disk_is_served_after_the_first() {
    let Slow { mut pipe, begun, end, server, _directory } = slow();
    let flush = request(command::FLUSH, 0, 1, 0, 0);
    let durable = request(command::WRITE, command_flag::FUA, 2, 0, 5);
    pipe.write_all(&[&flush[..], &durable, b"bytes", &request(command::READ, 0, 3, 0, 5)].concat()).unwrap();
    begun.recv().unwrap();
    end.send(()).unwrap();
    assert_eq!(reply(&mut pipe), (1, Ok(())));
    begun.recv().unwrap();
    read(&mut pipe, 3);
    end.send(()).unwrap();
    assert_eq!(reply(&mut pipe), (2, Ok(())));
    drop(server);
}

#[test]
fn a_client_that_leaves_during_a_flush_ends_the_connection_once_the_disk_has_answered() {
    for polite in [true, false] {
        let Slow { mut pipe, begun, end, server, _directory } = slow();
        pipe.write_all(&request(command::FLUSH, 0, 1, 0, 0)).unwrap();
        begun.recv().unwrap();
        if polite {
            pipe.write_all(&request(command::DISC, 0, 2, 0, 0)).unwrap();
        }
        drop(pipe);
        end.send(()).unwrap();
        // Waits until nothing is executed any more.
        drop(server);
    }
}

#[test]
fn a_flush_that_panics_does_not_leave_the_client_waiting() {
    let Slow { mut pipe, begun, end, server, _directory } = slow();
    drop(begun);
    pipe.write_all(&request(command::FLUSH, 0, 1, 0, 0)).unwrap();
    let mut rest = Vec::new();
    pipe.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    drop((end, server));
}
