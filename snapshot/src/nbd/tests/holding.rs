//! Replies that a cut holds back (R2, R3).

use super::*;

/// A cut that nothing ends but the test.
fn barrier() -> Arc<Cut> {
    let cut = Cut::new(Timing::Barrier, Nanos::from_millis(3_600_000));
    cut.strike(HostClock::real().now());
    Arc::new(cut)
}

#[test]
fn a_held_reply_waits_for_the_release_and_a_read_overtakes_it() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    pipe.write_all(&write_request(1, 0, b"later")).unwrap();
    for cookie in 2..100 {
        // The write is executed, only its answer waits: everything after it is answered before.
        pipe.write_all(&request(command::READ, 0, cookie, 0, 5)).unwrap();
        assert_eq!(reply(&mut pipe), (cookie, Ok(())));
        let mut data = [0; 5];
        pipe.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"later");
    }
    assert!(cut.is_holding());
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut pipe), (1, Ok(())));
    assert_eq!(cut.readings().unwrap().held, 1);
    // From here on nothing is held.
    pipe.write_all(&write_request(100, 0, b"after")).unwrap();
    assert_eq!(reply(&mut pipe), (100, Ok(())));
}

#[test]
fn a_read_that_saw_a_held_write_waits_with_it() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    pipe.write_all(&write_request(1, WATCHED, b"later")).unwrap();
    pipe.write_all(&request(command::READ, 0, 2, WATCHED, 100_000)).unwrap();
    pipe.write_all(&request(command::FLUSH, 0, 3, 0, 0)).unwrap();
    assert_eq!(reply(&mut pipe), (3, Ok(())));
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut pipe), (1, Ok(())));
    assert_eq!(reply(&mut pipe), (2, Ok(())));
    let mut data = vec![0; 100_000];
    pipe.read_exact(&mut data).unwrap();
    assert_eq!(&data[..5], b"later");
}

#[test]
fn the_error_of_a_post_request_is_held_too() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    served.exports.volume.failing.store(true, Ordering::SeqCst);
    pipe.write_all(&write_request(1, 0, b"fails")).unwrap();
    pipe.write_all(&request(command::FLUSH, 0, 2, 0, 0)).unwrap();
    assert_eq!(reply(&mut pipe), (2, Ok(())));
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut pipe), (1, Err(ErrorCode::Io)));
}

#[test]
fn a_timed_stretch_ends_by_the_connections_own_clock() {
    let served = Served::start();
    let mut client = served.client();
    for stretch in [Nanos::from_micros(5), Nanos::from_micros(50), Nanos::from_millis(5)] {
        let clock = HostClock::real();
        let at = clock.now();
        let cut = Arc::new(Cut::new(Timing::Timed { at, stretch }, Nanos::from_millis(100)));
        *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
        client.write(0, b"held", false).unwrap();
        assert!(clock.now() >= at + stretch);
        let readings = cut.readings().unwrap();
        assert_eq!(readings.released_by, Cause::Time);
        assert!(readings.q >= at + stretch);
    }
}

#[test]
fn a_client_that_leaves_before_the_release_does_no_harm() {
    let served = Served::start();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    let mut leaving = served.pipe();
    let mut staying = served.pipe();
    for (number, pipe) in [&mut leaving, &mut staying].into_iter().enumerate() {
        pipe.write_all(&write_request(1, number as u64 * 4096, b"later")).unwrap();
        pipe.write_all(&request(command::FLUSH, 0, 2, 0, 0)).unwrap();
        assert_eq!(reply(pipe), (2, Ok(())));
    }
    // Nothing leaks on the way out: a polite client that says good-bye reads the end, not the held reply.
    leaving.write_all(&request(command::DISC, 0, 3, 0, 0)).unwrap();
    let mut rest = Vec::new();
    leaving.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    drop(leaving);
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut staying), (1, Ok(())));
}

#[test]
fn a_server_that_stops_leaks_no_held_reply() {
    let served = Served::start();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    let mut pipe = served.pipe();
    pipe.write_all(&write_request(1, 0, b"later")).unwrap();
    pipe.write_all(&request(command::FLUSH, 0, 2, 0, 0)).unwrap();
    assert_eq!(reply(&mut pipe), (2, Ok(())));
    drop(served);
    cut.release(Cause::Abort, HostClock::real().now());
    let mut rest = Vec::new();
    pipe.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}
