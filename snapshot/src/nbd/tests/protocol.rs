//! What a client may rely on.

use super::*;

#[test]
fn a_client_does_everything_over_both_kinds_of_sockets() {
    let served = Served::start();
    for endpoint in served.server.endpoints() {
        assert_eq!(Client::list(endpoint).unwrap(), ["vol", "vol@monday"]);
        let mut client = Client::connect(endpoint, "vol").unwrap();
        assert_eq!((client.size(), client.read_only()), (SIZE as u64, false));
        let data: Vec<u8> = (0..wire::MAX_PAYLOAD).map(|at| (at % 241) as u8).collect();
        let mut back = vec![0; data.len()];
        for (offset, length) in [(0, 1), (4095, 2), (123, 65_536), (7, 1 << 20), (1, data.len())] {
            client.write(offset, &data[..length], length % 2 == 0).unwrap();
            client.read(offset, &mut back[..length]).unwrap();
            assert!(back[..length] == data[..length], "{length} bytes at {offset}");
        }
        client.flush().unwrap();
        client.trim(0, 4096, false).unwrap();
        client.write_zeroes(4096, 1, false, true).unwrap();
        client.read(0, &mut back[..4098]).unwrap();
        assert!(back[..4097].iter().all(|byte| *byte == 0));
        assert_eq!(back[4097], data[4096]);
        client.disconnect().unwrap();
        assert!(matches!(Client::connect(endpoint, "none"), Err(ClientError::NoSuchExport(_))));
    }
}

#[test]
fn options_are_answered_as_the_protocol_says() {
    let served = Served::start();
    let mut stream = served.raw();
    let long_name = vec![b'x'; wire::MAX_STRING + 1];
    #[rustfmt::skip]
    let cases = [
        (option::STRUCTURED_REPLY, vec![1], option_reply::ERR_INVALID),
        (option::LIST, vec![1], option_reply::ERR_INVALID),
        (5, vec![], option_reply::ERR_UNSUP),
        (option::LIST_META_CONTEXT, queries_data(b"vol", &[]), option_reply::ERR_INVALID),
        (option::SET_META_CONTEXT, queries_data(b"vol", &[]), option_reply::ERR_INVALID),
        (4711, vec![7; 3], option_reply::ERR_UNSUP),
        (option::INFO, vec![], option_reply::ERR_INVALID),
        (option::INFO, info_data(b"vol", &[])[..8].to_vec(), option_reply::ERR_INVALID),
        (option::GO, vec![0xff; 20], option_reply::ERR_INVALID),
        (option::GO, info_data(&long_name, &[]), option_reply::ERR_INVALID),
        (option::GO, info_data(b"none", &[]), option_reply::ERR_UNKNOWN),
        (option::GO, info_data(b"\xff\xfe", &[]), option_reply::ERR_UNKNOWN),
        (option::STRUCTURED_REPLY, vec![], option_reply::ACK),
    ];
    for (option, data, expected) in cases {
        stream.write_all(&option_bytes(option, &data)).unwrap();
        assert_eq!(option_reply(&mut stream), (option, expected, vec![]), "{data:?}");
    }
    stream.write_all(&option_bytes(option::GO, &info_data(b"vol@monday", &[info::BLOCK_SIZE, 77]))).unwrap();
    let (_, kind, data) = option_reply(&mut stream);
    use transmission_flag::*;
    let flags = HAS_FLAGS | READ_ONLY | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE | SEND_DF;
    let expected = [&[0, 0][..], &(SIZE as u64).to_be_bytes(), &flags.to_be_bytes()].concat();
    assert_eq!((kind, data), (option_reply::INFO, expected));
    let (_, kind, data) = option_reply(&mut stream);
    assert_eq!((kind, data), (option_reply::INFO, vec![0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]));
    assert_eq!(option_reply(&mut stream).1, option_reply::ACK);

    // Structured replies from here on: a chunk with the data, or one with the error.
    stream.write_all(&request(command::READ, command_flag::DF, 5, 4096, 3)).unwrap();
    let mut data = [0; wire::DATA_CHUNK_LEN + 3];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(data[..wire::DATA_CHUNK_LEN], wire::data_chunk(5, 4096, 3));
    assert_eq!(data[wire::DATA_CHUNK_LEN..], [1, 1, 1]);
    served.exports.snapshot.failing.store(true, Ordering::SeqCst);
    stream.write_all(&request(command::READ, 0, 6, 0, 100)).unwrap();
    let mut error = [0; 26];
    stream.read_exact(&mut error).unwrap();
    assert_eq!(error, wire::error_chunk(6, ErrorCode::Io));
}

#[test]
fn the_oldest_clients_get_their_zeroes() {
    let served = Served::start();
    let mut stream = UnixStream::connect(served.unix()).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&1u32.to_be_bytes()).unwrap();
    stream.write_all(&option_bytes(option::EXPORT_NAME, b"vol")).unwrap();
    let mut answer = [1; 8 + 2 + 124];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], (SIZE as u64).to_be_bytes());
    assert_eq!(answer[10..], [0; 124]);
    stream.write_all(&request(command::FLUSH, 0, 1, 0, 0)).unwrap();
    assert_eq!(reply(&mut stream), (1, Ok(())));
}

#[test]
fn requests_before_a_good_bye_are_answered() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let bytes = [write_request(1, 0, b"last"), request(command::DISC, 0, 2, 0, 0).to_vec()].concat();
    pipe.write_all(&bytes).unwrap();
    assert_eq!(reply(&mut pipe), (1, Ok(())));
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let mut writer = pipe.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for cookie in 0..2_000 {
            writer.write_all(&write_request(cookie, cookie * 4096, &[cookie as u8 | 1; 4096])).unwrap();
        }
        for cookie in 0..2_000 {
            writer.write_all(&request(command::READ, 0, cookie, cookie * 4096, 4096)).unwrap();
        }
    });
    for cookie in 0..2_000 {
        assert_eq!(reply(&mut pipe), (cookie, Ok(())));
    }
    for cookie in 0..2_000 {
        assert_eq!(reply(&mut pipe), (cookie, Ok(())));
        let mut data = [0; 4096];
        pipe.read_exact(&mut data).unwrap();
        assert_eq!(data, [cookie as u8 | 1; 4096]);
    }
    sender.join().unwrap();
}

#[test]
fn long_and_short_writes_in_flight_all_arrive_whole() {
    const SLOT: usize = 640 << 10;
    let served = Served::start();
    let mut pipe = served.pipe();
    // The long ones are handed over, those behind them come in pieces.
    let data = |cookie: u64| vec![cookie as u8 + 1; if cookie % 4 == 3 { 4096 } else { SLOT }];
    for _ in 0..3 {
        let mut writer = pipe.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            for cookie in 0..60 {
                writer.write_all(&write_request(cookie, cookie * SLOT as u64, &data(cookie))).unwrap();
            }
        });
        let mut answered: Vec<u64> = (0..60)
            .map(|_| {
                let (cookie, result) = reply(&mut pipe);
                assert_eq!(result, Ok(()));
                cookie
            })
            .collect();
        sender.join().unwrap();
        answered.sort_unstable();
        assert_eq!(answered, (0..60).collect::<Vec<u64>>());
        for cookie in 0..60 {
            let expected = data(cookie);
            let length = expected.len() as u32;
            pipe.write_all(&request(command::READ, 0, cookie, cookie * SLOT as u64, length)).unwrap();
            assert_eq!(reply(&mut pipe), (cookie, Ok(())));
            let mut data = vec![0; expected.len()];
            pipe.read_exact(&mut data).unwrap();
            assert!(data == expected, "write {cookie} did not arrive whole");
        }
    }
}

#[test]
fn a_socket_file_is_replaced_only_if_nobody_listens_on_it() {
    let served = Served::start();
    let bind =
        |endpoint: &Endpoint| Server::bind(std::slice::from_ref(endpoint), exports() as _, HostClock::real());
    for endpoint in served.server.endpoints() {
        let error = bind(endpoint).unwrap_err();
        assert!(matches!(error, NbdError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&endpoint.to_string()));
    }
    served.client().flush().unwrap();

    let stale = Endpoint::Unix(served.directory.path().join("stale"));
    let Endpoint::Unix(path) = &stale else { unreachable!() };
    drop(UnixListener::bind(path).unwrap());
    let server = bind(&stale).unwrap();
    Client::connect(&stale, "vol").unwrap().flush().unwrap();
    drop(server);
    assert!(!Path::exists(path), "the server cleans up behind itself");

    std::fs::write(path, "precious").unwrap();
    assert!(matches!(bind(&stale), Err(NbdError::NotASocket { .. })));
    assert_eq!(std::fs::read(path).unwrap(), b"precious");
}

#[test]
fn endpoints_are_written_as_they_are_read() {
    for text in
        ["tcp://127.0.0.1:10809", "tcp://[::1]:0", "tls://10.0.0.1:10809", "unix:///run/coeval/nbd.sock"]
    {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
    }
    for text in ["", "tcp://", "tcp://host", "unix://relative", "udp://127.0.0.1:1", "127.0.0.1:1"] {
        let error = text.parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("tcp://ADDRESS:PORT"), "{error}");
    }
}
