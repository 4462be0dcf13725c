//! Clients that ask for what there is not, or mean harm.

use super::*;

#[test]
fn refused_requests_leave_the_connection_in_step() {
    let served = Served::start();
    let mut client = served.client();
    let end = client.size();
    let mut page = [0; 4096];
    assert!(matches!(client.write(end - 1, &page, false), Err(ClientError::Refused(ErrorCode::NoSpace))));
    assert!(matches!(client.read(end, &mut page), Err(ClientError::Refused(ErrorCode::Invalid))));
    assert!(matches!(client.trim(end, 1, false), Err(ClientError::Refused(ErrorCode::Invalid))));
    client.read(0, &mut page).unwrap();

    let mut snapshot = Client::connect(&served.server.endpoints()[0], "vol@monday").unwrap();
    assert!(snapshot.read_only());
    assert!(matches!(snapshot.write(0, &page, true), Err(ClientError::Refused(ErrorCode::NotPermitted))));
    assert!(matches!(snapshot.trim(0, 1, true), Err(ClientError::Refused(ErrorCode::NotPermitted))));
    snapshot.read(0, &mut page).unwrap();

    let mut pipe = served.pipe();
    // A payload that is longer than allowed is passed over, and what follows it is understood.
    pipe.write_all(&request(command::WRITE, 0, 1, 0, wire::MAX_PAYLOAD + 1)).unwrap();
    pipe.write_all(&vec![0x25; wire::MAX_PAYLOAD as usize + 1]).unwrap();
    pipe.write_all(&request(99, 0, 2, 0, 1)).unwrap();
    // What cannot be done fast is not done.
    pipe.write_all(&request(command::WRITE_ZEROES, command_flag::FAST_ZERO, 3, 0, 1)).unwrap();
    pipe.write_all(&request(command::FLUSH, 0, 4, 0, 0)).unwrap();
    assert_eq!(reply(&mut pipe), (1, Err(ErrorCode::Invalid)));
    assert_eq!(reply(&mut pipe), (2, Err(ErrorCode::Invalid)));
    assert_eq!(reply(&mut pipe), (3, Err(ErrorCode::Unsupported)));
    assert_eq!(reply(&mut pipe), (4, Ok(())));
}

#[test]
fn a_client_that_takes_no_replies_is_not_read_any_further_and_others_go_on() {
    let served = Served::start();
    let mut lazy = served.pipe();
    lazy.set_nonblocking(true).unwrap();
    // Far more requests than all buffers between hold, each for far more bytes than it takes to ask for them.
    let asked = (0..1_000_000)
        .position(|cookie| lazy.write(&request(command::READ, 0, cookie, 0, 1 << 20)).is_err())
        .expect("the server stops reading");
    served.client().read(0, &mut [0; 4096]).unwrap();
    lazy.set_nonblocking(false).unwrap();
    let mut data = vec![0; 1 << 20];
    for cookie in 0..(asked as u64).min(50) {
        assert_eq!(reply(&mut lazy), (cookie, Ok(())));
        lazy.read_exact(&mut data).unwrap();
    }
}

#[test]
fn hostile_clients_are_cut_off_and_the_server_lives_on() {
    let served = Served::start();
    let huge = wire::option_head(option::GO, u32::MAX).to_vec();
    for bytes in [vec![0; 64], vec![0xff; 300_000], huge, option_bytes(option::EXPORT_NAME, b"none")] {
        let mut stream = served.raw();
        // The server may have hung up before it was all sent.
        let _ = stream.write_all(&bytes);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    let mut pipe = served.pipe();
    pipe.write_all(&[0xaa; Request::LEN]).unwrap();
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0);

    // A flood of options is answered one by one, at the pace at which the client takes the answers, and then no more.
    let mut flood = served.raw();
    let mut writer = flood.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let sent = (0..20_000).take_while(|_| writer.write_all(&option_bytes(option::LIST, &[])).is_ok());
        sent.count()
    });
    let mut answers = Vec::new();
    // The end of the connection may overtake what the server had sent before.
    let _ = flood.read_to_end(&mut answers);
    let answer: usize = [20 + 4 + "volbytes in memory".len(), 20 + 4 + "vol@monday".len(), 20].iter().sum();
    assert!((answer..=wire::MAX_OPTIONS * answer).contains(&answers.len()), "{} bytes", answers.len());
    sender.join().unwrap();

    // One that makes the device panic loses its connection, and nobody else does.
    let mut other = served.client();
    let mut pipe = served.pipe();
    pipe.write_all(&write_request(1, 0, b"panic")).unwrap();
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
    other.read(0, &mut [0; 1]).unwrap();
    served.client().read(0, &mut [0; 1]).unwrap();
}

proptest! {
    #[test]
    fn the_handshake_takes_any_bytes(
        mut input in prop::collection::vec(any::<u8>(), 0..200),
        option in 0..12u32,
        sound in 0..4u8,
    ) {
        // Mostly with a sound beginning, so that the options' own parsers are reached.
        if sound > 0 {
            let head = wire::option_head(option, input.len() as u32);
            input = [&[0, 0, 0, 3][..], &head, &input].concat();
        }
        let exports = exports_of_nothing();
        let mut out = Buffer::new();
        let mut handshake = Handshake::start(&exports, &mut out);
        let mut rest = input.as_slice();
        while let Ok(Step::Used(count)) = handshake.step(rest, &mut out) {
            prop_assert!(count > 0);
            rest = &rest[count..];
        }
        prop_assert!(out.len() < 16 << 10);
    }
}

/// Streams of requests, sound and unsound.
#[test]
fn requests_of_any_content_do_no_harm() {
    let served = Served::start();
    let parts = prop::collection::vec(
        (any::<u8>(), 0..8u16, prop_oneof![Just(0), Just(1), 0..32u16], any::<u32>(), 0..70_000u32),
        1..20,
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(100));
    let result = runner.run(&parts, |parts| {
        let mut pipe = served.pipe();
        let mut bytes = Vec::new();
        for (cookie, (kind, command, flags, offset, length)) in parts.into_iter().enumerate() {
            match kind {
                0..4 => bytes.extend(vec![kind; length as usize % 100]),
                _ => bytes.extend(request(command, flags, cookie as u64, offset.into(), length)),
            }
            if command == command::WRITE && kind > 8 {
                bytes.extend(vec![kind; length as usize]);
            }
        }
        let mut reader = pipe.try_clone().unwrap();
        let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        // The server may have hung up before it was all sent.
        let _ = pipe.write_all(&bytes);
        let _ = pipe.shutdown(std::net::Shutdown::Write);
        let _ = drain.join().unwrap();
        Ok(())
    });
    result.unwrap();
    served.client().flush().unwrap();
}

fn exports_of_nothing() -> impl Exports {
    struct Nothing;
    impl Exports for Nothing {
        fn list(&self) -> Vec<String> {
            Vec::new()
        }
        fn open(&self, _name: &str) -> Option<Arc<dyn Device>> {
            None
        }
    }
    Nothing
}
