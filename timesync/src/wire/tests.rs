use proptest::prelude::*;

use super::*;

const SERVER: PortIdentity =
    PortIdentity { clock: [0x42, 0x63, 0x76, 0xFF, 0xFE, 0x00, 0x00, 0x01], port: 1 };
const HOST: PortIdentity = PortIdentity { clock: [0xA0, 0xA1, 0xA2, 0xFF, 0xFE, 0xA5, 0xA6, 0xA7], port: 2 };

fn header(source: PortIdentity) -> Header {
    Header {
        domain: 7,
        sdo: 0,
        minor_version: 1,
        two_step: false,
        unicast: true,
        correction: 0,
        source,
        sequence: 0x1234,
    }
}

/// IEEE 1588-2019 tables 35 (header), 47 (`Pdelay_Req`): octet by octet.
#[test]
fn a_request_is_laid_out_as_the_standard_says() {
    let message = Message { header: header(SERVER), body: Body::Request, extension: None };
    let expected: [&[u8]; 11] = [
        &[0x02, 0x12],                                                 // sdo 0 | Pdelay_Req, PTP 2.1
        &[0x00, 54],                                                   // messageLength
        &[7, 0],                                                       // domainNumber, minorSdoId
        &[0x04, 0x00],                                                 // flagField: unicast
        &[0; 8],                                                       // correctionField
        &[0; 4],                                                       // messageTypeSpecific
        &[0x42, 0x63, 0x76, 0xFF, 0xFE, 0x00, 0x00, 0x01, 0x00, 0x01], // sourcePortIdentity
        &[0x12, 0x34],                                                 // sequenceId
        &[0x05, 0x7F],                                                 // controlField, logMessageInterval
        &[0; 10],                                                      // originTimestamp
        &[0; 10],                                                      // reserved
    ];
    assert_eq!(&*message.encode(), expected.concat());
}

/// Tables 48 (`Pdelay_Resp`) and 49 (`Pdelay_Resp_Follow_Up`).
#[test]
fn answers_are_laid_out_as_the_standard_says() {
    let at = Time::from_nanos(0x0000_6540_1234 * 1_000_000_000 + 0x0ABC_DEF0);
    for (body, kind) in [
        (Body::Response { received: at, requester: SERVER }, 0x03),
        (Body::FollowUp { sent: at, requester: SERVER }, 0x0A),
    ] {
        let header = Header { two_step: true, correction: -0x1_8000, ..header(HOST) };
        let octets = Message { header, body, extension: None }.encode();
        assert_eq!(octets[..8], [kind, 0x12, 0, 54, 7, 0, 0x06, 0]);
        assert_eq!(octets[8..16], [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0x80, 0x00]);
        assert_eq!(octets[34..44], [0x00, 0x00, 0x65, 0x40, 0x12, 0x34, 0x0A, 0xBC, 0xDE, 0xF0]);
        assert_eq!(octets[44..54], [0x42, 0x63, 0x76, 0xFF, 0xFE, 0x00, 0x00, 0x01, 0x00, 0x01]);
    }
}

#[test]
fn our_tlv_is_laid_out_as_documented_and_all_three_messages_are_equally_long() {
    let reading = Reading {
        raw_earliest: 0x0102_0304_0506_0708,
        raw_width: 0x1122_3344,
        class: StampClass::Software,
        incarnation: Incarnation {
            boot: BootId(Uuid::from_bytes([0xB0; 16])),
            process: ProcessId(Uuid::from_bytes([0xC0; 16])),
        },
        suspends: 2,
        steps: 3,
        simulated: true,
        trusted_source: true,
    };
    let answer = Message {
        header: header(HOST),
        body: Body::FollowUp { sent: Time::from_nanos(5), requester: SERVER },
        extension: Some(Extension::Reading(reading)),
    };
    let request = Message { header: header(SERVER), body: Body::Request, extension: Some(Extension::Wanted) };
    let octets = answer.encode();
    assert_eq!(octets[2..4], [0, 118]);
    let expected: [&[u8]; 9] = [
        &[0x20, 0x26, 0, 60],
        b"Cval",
        &[1, 1, 0, 3],
        &[1, 2, 3, 4, 5, 6, 7, 8],
        &[0x11, 0x22, 0x33, 0x44],
        &[0, 0, 0, 2],
        &[0, 0, 0, 3],
        &[0xB0; 16],
        &[0xC0; 16],
    ];
    assert_eq!(octets[54..], expected.concat());
    assert_eq!(octets.len(), request.encode().len());
}

/// Tables 44 (`Sync`, `Delay_Req`), 45 (`Follow_Up`) and 46 (`Delay_Resp`); the TLV as linuxptp's nsm sends it.
#[test]
fn a_net_sync_monitors_messages_are_laid_out_as_the_standard_and_linuxptp_say() {
    let asked = Message { header: header(SERVER), body: Body::DelayRequest, extension: None }.encode();
    assert_eq!(asked[..8], [0x01, 0x12, 0, 48, 7, 0, 0x04, 0]);
    assert_eq!(asked[30..34], [0x12, 0x34, 0x01, 0x7F]);
    assert_eq!(asked[34..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x21, 0xFE, 0, 0]);
    let at = Time::from_nanos(0x0000_6540_1234 * 1_000_000_000 + 0x0ABC_DEF0);
    for (body, kind, control, len) in [
        (Body::Sync { sent: at }, 0x00, 0, 44),
        (Body::SyncFollowUp { sent: at }, 0x08, 2, 44),
        (Body::DelayResponse { received: at, requester: SERVER }, 0x09, 3, 54),
    ] {
        let octets = Message { header: header(HOST), body, extension: None }.encode();
        assert_eq!((octets[..4].to_vec(), octets.len()), (vec![kind, 0x12, 0, len], usize::from(len)));
        assert_eq!(octets[32], control);
        assert_eq!(octets[34..44], [0x00, 0x00, 0x65, 0x40, 0x12, 0x34, 0x0A, 0xBC, 0xDE, 0xF0]);
    }
}

#[test]
fn foreign_tlvs_and_trailing_octets_are_passed_over() {
    let body = Body::Response { received: Time::from_nanos(5), requester: SERVER };
    let message = Message { header: header(HOST), body, extension: Some(Extension::Wanted) };
    let encoded = message.encode();
    let mut octets = encoded[..PLAIN_LEN].to_vec();
    octets.extend([0x20, 0x26, 0, 4, 1, 2, 3, 4]); // our type, not our magic
    octets.extend([0x00, 0x03, 0, 2, 9, 9]);
    octets.extend(&encoded[PLAIN_LEN..]);
    octets[3] = u8::try_from(octets.len()).unwrap();
    octets.extend([0, 0]); // as over IPv6
    assert_eq!(Message::parse(&octets), Ok(message));
}

#[test]
fn a_request_is_54_octets_to_a_stock_daemon_and_carries_our_tlv_behind_them() {
    let message = Message { header: header(SERVER), body: Body::Request, extension: Some(Extension::Wanted) };
    let octets = message.encode();
    assert_eq!((octets[2..4].to_vec(), octets.len()), (vec![0, 54], EXTENDED_LEN));
    assert_eq!(Message::parse(&octets), Ok(message));
    let plain = Message { extension: None, ..message };
    assert_eq!(Message::parse(&octets[..54]), Ok(plain));
    assert_eq!(Message::parse(&[&octets[..54], &[0xFF; 7]].concat()), Ok(plain));
}

#[test]
fn what_is_wrong_is_said() {
    let good = Message {
        header: header(HOST),
        body: Body::Response { received: Time::from_nanos(5), requester: SERVER },
        extension: Some(Extension::Wanted),
    }
    .encode();
    type Edit = fn(&mut Vec<u8>);
    let cases: [(Edit, WireError); 9] = [
        (|o| o.truncate(3), WireError::Truncated(3)),
        (|o| o[3] = 20, WireError::Truncated(20)),
        (|o| o[2] = 1, WireError::Length { said: 256 + 118, got: 118 }),
        (|o| o[1] = 1, WireError::Version(1)),
        (|o| o[0] = 0xB, WireError::Type(0xB)),
        (
            |o| o[40..44].copy_from_slice(&1_000_000_000_u32.to_be_bytes()),
            WireError::Nanoseconds(1_000_000_000),
        ),
        (|o| o[34] = 0x80, WireError::Range),
        (|o| o[57] = 200, WireError::Tlv),
        (|o| o[62] = 9, WireError::TlvVersion(9)),
    ];
    for (edit, error) in cases {
        let mut octets = good.to_vec();
        edit(&mut octets);
        assert_eq!(Message::parse(&octets), Err(error));
    }
}

fn identity() -> impl Strategy<Value = PortIdentity> {
    (any::<[u8; 8]>(), any::<u16>()).prop_map(|(clock, port)| PortIdentity { clock, port })
}

fn reading() -> impl Strategy<Value = Reading> {
    (
        (-LIMIT..=LIMIT, any::<u32>(), 0_usize..3),
        (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u32>(), any::<u32>(), any::<bool>(), any::<bool>()),
    )
        .prop_map(
            |((raw_earliest, raw_width, class), (boot, process, suspends, steps, simulated, trusted))| {
                Reading {
                    raw_earliest,
                    raw_width,
                    class: [StampClass::Hardware, StampClass::Software, StampClass::Userspace][class],
                    incarnation: Incarnation {
                        boot: BootId(Uuid::from_bytes(boot)),
                        process: ProcessId(Uuid::from_bytes(process)),
                    },
                    suspends,
                    steps,
                    simulated,
                    trusted_source: trusted,
                }
            },
        )
}

fn message() -> impl Strategy<Value = Message> {
    let header = (
        (any::<u8>(), 0_u16..0x1000, 0_u8..16, any::<bool>(), any::<bool>()),
        (any::<i64>(), identity(), any::<u16>()),
    )
        .prop_map(|((domain, sdo, minor_version, two_step, unicast), (correction, source, sequence))| {
            Header { domain, sdo, minor_version, two_step, unicast, correction, source, sequence }
        });
    let body = prop_oneof![
        Just(Body::Request),
        Just(Body::DelayRequest),
        (0..LIMIT).prop_map(|at| Body::Sync { sent: Time::from_nanos(at) }),
        (0..LIMIT).prop_map(|at| Body::SyncFollowUp { sent: Time::from_nanos(at) }),
        (0..LIMIT, identity())
            .prop_map(|(at, requester)| Body::DelayResponse { received: Time::from_nanos(at), requester }),
        (0..LIMIT, identity())
            .prop_map(|(at, requester)| Body::Response { received: Time::from_nanos(at), requester }),
        (0..LIMIT, identity())
            .prop_map(|(at, requester)| Body::FollowUp { sent: Time::from_nanos(at), requester }),
    ];
    let extension =
        proptest::option::of(prop_oneof![Just(Extension::Wanted), reading().prop_map(Extension::Reading)]);
    (header, body, extension).prop_map(|(header, body, extension)| Message { header, body, extension })
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in message()) {
        prop_assert_eq!(Message::parse(&message.encode()), Ok(message));
    }

    #[test]
    fn every_truncation_is_refused(message in message()) {
        let octets = message.encode();
        for len in 0..usize::from(octets[3]) {
            prop_assert!(Message::parse(&octets[..len]).is_err());
        }
    }

    #[test]
    fn damage_is_refused_or_stays_in_range(
        message in message(),
        damage in proptest::collection::vec((0_usize..EXTENDED_LEN, any::<u8>()), 1..8),
    ) {
        let mut octets = message.encode().to_vec();
        for (at, octet) in damage {
            if let Some(place) = octets.get_mut(at) {
                *place = octet;
            }
        }
        if let Ok(Message { extension: Some(Extension::Reading(reading)), .. }) = Message::parse(&octets) {
            prop_assert!(reading.raw_earliest.abs() <= LIMIT);
        }
    }

    #[test]
    fn random_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::parse(&octets);
    }
}
