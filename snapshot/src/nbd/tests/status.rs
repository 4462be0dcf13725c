//! Metadata contexts and BLOCK_STATUS.

use super::*;

const ALLOCATION: &str = "base:allocation";
const SINCE: &str = "qemu:dirty-bitmap:since-monday";

/// The names that the server answers with, in the order of their numbers.
fn contexts(stream: &mut UnixStream, option: u32, export: &[u8], queries: &[&str]) -> Vec<String> {
    stream.write_all(&option_bytes(option, &queries_data(export, queries))).unwrap();
    let mut names = Vec::new();
    loop {
        let (answered, kind, data) = option_reply(stream);
        assert_eq!(answered, option);
        match kind {
            option_reply::META_CONTEXT => {
                names.push(String::from_utf8(data[4..].to_vec()).unwrap());
                assert_eq!(data[..4], (names.len() as u32).to_be_bytes());
            }
            kind => {
                assert_eq!(kind, option_reply::ACK);
                return names;
            }
        }
    }
}

fn structured(served: &Served) -> UnixStream {
    let mut stream = served.raw();
    stream.write_all(&option_bytes(option::STRUCTURED_REPLY, &[])).unwrap();
    assert_eq!(option_reply(&mut stream).1, option_reply::ACK);
    stream
}

fn go(stream: &mut UnixStream, export: &[u8]) {
    stream.write_all(&option_bytes(option::GO, &info_data(export, &[]))).unwrap();
    assert_eq!(option_reply(stream).1, option_reply::INFO);
    assert_eq!(option_reply(stream).1, option_reply::ACK);
}

/// A connection on which these contexts may be asked for.
fn selected(served: &Served, queries: &[&str]) -> UnixStream {
    let mut stream = structured(served);
    contexts(&mut stream, option::SET_META_CONTEXT, b"vol", queries);
    go(&mut stream, b"vol");
    stream
}

/// One chunk: whether it is the last one, its kind and cookie, and what it holds.
fn chunk(stream: &mut UnixStream) -> (bool, u16, u64, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let rest = &mut head.as_slice();
    assert_eq!(wire::take_u32(rest), Some(0x668e_33ef));
    let (flags, kind) = (wire::take_u16(rest).unwrap(), wire::take_u16(rest).unwrap());
    let cookie = wire::take_u64(rest).unwrap();
    let mut data = vec![0; wire::take_u32(rest).unwrap() as usize];
    stream.read_exact(&mut data).unwrap();
    (flags == 1, kind, cookie, data)
}

/// A chunk of kind BLOCK_STATUS: whether it is the last one, its context, and the runs.
fn status(stream: &mut UnixStream, expected: u64) -> (bool, u32, Vec<(u32, u32)>) {
    let (last, kind, cookie, data) = chunk(stream);
    assert_eq!((kind, cookie), (5, expected));
    let rest = &mut data.as_slice();
    let id = wire::take_u32(rest).unwrap();
    let runs = std::iter::from_fn(|| Some((wire::take_u32(rest)?, wire::take_u32(rest)?))).collect();
    (last, id, runs)
}

#[test]
fn contexts_are_found_by_name_and_namespace() {
    let served = Served::start();
    let mut stream = structured(&served);
    let sunday = "qemu:dirty-bitmap:since-sunday";
    let all = [ALLOCATION, sunday, SINCE];
    #[rustfmt::skip]
    let cases: [(&[&str], &[&str]); 9] = [
        (&[], &all),
        (&["base:"], &all[..1]),
        (&["qemu:"], &all[1..]),
        (&["qemu:dirty-bitmap:"], &all[1..]),
        (&["base:", "qemu:dirty-bitmap:", ALLOCATION], &all),
        (&[SINCE], &all[2..]),
        (&["qemu:dirty-bitmap:since-tuesday"], &[]),
        (&["qemu:allocation-depth", "base", "other:"], &[]),
        (&["qemu:dirty-bitmap:since-"], &[]),
    ];
    for (queries, expected) in cases {
        assert_eq!(
            contexts(&mut stream, option::LIST_META_CONTEXT, b"vol", queries),
            expected,
            "{queries:?}"
        );
    }
    // To select something, one must name it.
    assert!(contexts(&mut stream, option::SET_META_CONTEXT, b"vol", &[]).is_empty());
    assert!(contexts(&mut stream, option::SET_META_CONTEXT, b"vol", &["base:", "qemu:"]).is_empty());
    assert_eq!(contexts(&mut stream, option::SET_META_CONTEXT, b"vol", &[SINCE, SINCE]), [SINCE]);

    let mut many = queries_data(b"vol", &[]);
    let count = many.len() - 4;
    many[count..].copy_from_slice(&10_000u32.to_be_bytes());
    for (data, expected) in [
        (many, option_reply::ERR_TOO_BIG),
        (queries_data(b"none", &[]), option_reply::ERR_UNKNOWN),
        (vec![], option_reply::ERR_INVALID),
    ] {
        stream.write_all(&option_bytes(option::LIST_META_CONTEXT, &data)).unwrap();
        assert_eq!(option_reply(&mut stream).1, expected);
    }
}

#[test]
fn the_list_describes_what_it_can() {
    let served = Served::start();
    let mut stream = served.raw();
    stream.write_all(&option_bytes(option::LIST, &[])).unwrap();
    assert_eq!(option_reply(&mut stream).2, b"\0\0\0\x03volbytes in memory");
    assert_eq!(option_reply(&mut stream).2, b"\0\0\0\x0avol@monday");
}

#[test]
fn status_has_a_chunk_for_each_selected_context() {
    let served = Served::start();
    let mut stream = selected(&served, &[SINCE, ALLOCATION]);
    let half = SIZE as u64 / 2;
    // The first page holds zeros, the others something else.
    stream.write_all(&request(command::BLOCK_STATUS, 0, 7, 100, 8192)).unwrap();
    assert_eq!(status(&mut stream, 7), (false, 1, vec![(3996, 3), (4096, 0), (100, 0)]));
    assert_eq!(status(&mut stream, 7), (true, 2, vec![(8192, 0)]));
    stream.write_all(&request(command::BLOCK_STATUS, 0, 8, half - 4096, 4097)).unwrap();
    assert_eq!(status(&mut stream, 8).1, 1);
    assert_eq!(status(&mut stream, 8), (true, 2, vec![(4096, 0), (1, 1)]));
    stream.write_all(&request(command::BLOCK_STATUS, command_flag::REQ_ONE, 9, 0, 1 << 20)).unwrap();
    assert_eq!(status(&mut stream, 9), (false, 1, vec![(4096, 3)]));
    assert_eq!(status(&mut stream, 9), (true, 2, vec![(1 << 20, 0)]));
    // As many runs as the device has pages: the answer ends before the range does.
    stream.write_all(&request(command::BLOCK_STATUS, 0, 10, 0, SIZE as u32)).unwrap();
    assert_eq!(status(&mut stream, 10).2.len(), 4096);
    status(&mut stream, 10);

    served.exports.volume.failing.store(true, Ordering::SeqCst);
    stream.write_all(&request(command::BLOCK_STATUS, 0, 11, 0, 4096)).unwrap();
    let (last, kind, cookie, data) = chunk(&mut stream);
    assert_eq!((last, kind, cookie, &data[..4]), (true, (1 << 15) | 1, 11, &[0, 0, 0, 5][..]));
}

#[test]
fn status_is_told_only_of_what_was_selected_for_this_export() {
    let served = Served::start();
    let mut unselected = structured(&served);
    go(&mut unselected, b"vol");
    let mut other = structured(&served);
    contexts(&mut other, option::SET_META_CONTEXT, b"vol@monday", &[ALLOCATION]);
    go(&mut other, b"vol");
    let mut forgotten = structured(&served);
    contexts(&mut forgotten, option::SET_META_CONTEXT, b"vol", &[ALLOCATION]);
    contexts(&mut forgotten, option::SET_META_CONTEXT, b"vol", &["none"]);
    go(&mut forgotten, b"vol");
    for stream in [&mut unselected, &mut other, &mut forgotten] {
        stream.write_all(&request(command::BLOCK_STATUS, 0, 1, 0, 4096)).unwrap();
        let (_, kind, _, data) = chunk(stream);
        assert_eq!((kind, &data[..4]), ((1 << 15) | 1, &[0, 0, 0, 22][..]));
    }
}

#[test]
fn a_status_that_shows_a_held_write_waits_with_it_and_no_other_does() {
    let served = Served::start();
    let mut stream = selected(&served, &[ALLOCATION]);
    let cut = Cut::new(Timing::Barrier, Nanos::from_millis(3_600_000));
    cut.strike(HostClock::real().now());
    let cut = Arc::new(cut);
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    stream.write_all(&write_request(1, WATCHED, b"later")).unwrap();
    stream.write_all(&request(command::BLOCK_STATUS, 0, 2, WATCHED, 4096)).unwrap();
    stream.write_all(&request(command::BLOCK_STATUS, 0, 3, 0, 4096)).unwrap();
    assert_eq!(status(&mut stream, 3), (true, 1, vec![(4096, 3)]));
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut stream), (1, Ok(())));
    assert_eq!(status(&mut stream, 2), (true, 1, vec![(4096, 0)]));
}

#[test]
fn cache_is_taken_as_advice() {
    let served = Served::start();
    let mut pipe = served.pipe();
    pipe.write_all(&request(command::CACHE, 0, 1, 0, SIZE as u32)).unwrap();
    pipe.write_all(&request(command::CACHE, 0, 2, 1, SIZE as u32)).unwrap();
    assert_eq!(reply(&mut pipe), (1, Ok(())));
    assert_eq!(reply(&mut pipe), (2, Err(ErrorCode::Invalid)));
}
