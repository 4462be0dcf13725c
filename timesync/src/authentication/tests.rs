use proptest::prelude::*;

use super::*;
use crate::time::Time;
use crate::wire::{Body, Extension, Header, PLAIN_LEN, PortIdentity};

const SECRET: [u8; 32] = {
    let mut secret = [0; 32];
    let mut i = 0;
    while i < 32 {
        secret[i] = i as u8;
        i += 1;
    }
    secret
};
const SERVER: PortIdentity =
    PortIdentity { clock: [0x42, 0x63, 0x76, 0xFF, 0xFE, 0x00, 0x00, 0x01], port: 1 };

fn message(body: Body, extension: Option<Extension>, correction: i64) -> Message {
    let header = Header {
        domain: 7,
        sdo: 0,
        minor_version: 1,
        two_step: false,
        unicast: true,
        correction,
        source: SERVER,
        sequence: 0x1234,
    };
    Message { header, body, extension }
}

fn request() -> Message {
    message(Body::Request, None, 0)
}

fn answer() -> Message {
    message(Body::Response { received: Time::from_nanos(77), requester: SERVER }, Some(Extension::Wanted), 0)
}

fn key() -> Key {
    Key::new(5, 9, &SECRET)
}

/// The ICV was computed apart from this program, with Python's hmac, over the layout that linuxptp's sad.c writes: it is
/// what such a daemon expects, and sends.
#[test]
fn a_request_to_a_stock_daemon_is_laid_out_as_linuxptp_has_it() {
    let octets = encode(&request(), Some(&Seal { key: key(), number: None }));
    let plain = request().encode();
    assert_eq!(octets[..3], plain[..3]);
    assert_eq!(octets[3], 80, "messageLength counts the TLV");
    assert_eq!(octets[4..54], plain[4..]);
    assert_eq!(octets[54..64], [0x80, 0x09, 0, 22, 5, 0, 0, 0, 0, 9]);
    let icv =
        [0x8a, 0x83, 0x74, 0x14, 0x36, 0x68, 0x2e, 0x7e, 0x2e, 0x93, 0x5a, 0x98, 0x84, 0x86, 0x27, 0xdd];
    assert_eq!(octets[64..], icv);
}

#[test]
fn what_is_sealed_is_read_by_the_codec_and_all_three_messages_are_equally_long() {
    let seal = Seal { key: key(), number: Some(3) };
    let asked = message(Body::Request, Some(Extension::Wanted), 0);
    let follow_up =
        message(Body::FollowUp { sent: Time::from_nanos(9), requester: SERVER }, Some(Extension::Wanted), 5);
    for sent in [asked, answer(), follow_up] {
        let octets = encode(&sent, Some(&seal));
        assert_eq!(octets.len(), LONGEST);
        assert_eq!(usize::from(octets[3]), LONGEST, "our own TLV is inside the message, a request's too");
        assert_eq!(Message::parse(&octets), Ok(sent));
    }
    assert_eq!(*encode(&asked, None), *asked.encode());
}

#[test]
fn a_request_is_answered_and_the_answer_taken_once_it_is_its_own() {
    for numbered in [true, false] {
        let mut server = Association::new(key(), numbered);
        let host = Keyring::new(Some(key()));
        let older = server.next_request();
        let asked = encode(&request(), Some(&server.next_request()));
        let (octets, seal) = host.admit(&asked).unwrap();
        assert_eq!(Message::parse(octets), Ok(request()));
        let answered = encode(&answer(), seal.as_ref());
        assert_eq!(server.admit(&answered).map(Message::parse), Ok(Ok(answer())));
        let stale = encode(&answer(), Some(&older));
        assert_eq!(server.admit(&stale).is_err(), numbered);
        server.next_request();
        assert_eq!(server.admit(&answered).is_err(), numbered, "by now it is a replay");
    }
}

#[test]
fn octets_behind_the_message_are_not_handed_on() {
    let mut octets = encode(&request(), Some(&Seal { key: key(), number: None })).to_vec();
    // What would be our TLV, if nobody vouched for messages.
    octets.extend(&message(Body::Request, Some(Extension::Wanted), 0).encode()[PLAIN_LEN..]);
    let (admitted, _) =
        Keyring::new(Some(key())).admit(&octets).map(|(octets, seal)| (octets.to_vec(), seal)).unwrap();
    assert_eq!(Message::parse(&admitted), Ok(request()));
}

#[test]
fn a_tlv_behind_the_authentication_would_not_be_covered_so_there_is_none() {
    let mut octets = encode(&request(), Some(&Seal { key: key(), number: None })).to_vec();
    octets.extend([0x20, 0x26, 0, 0]);
    octets[3] += 4;
    assert_eq!(Keyring::new(Some(key())).admit(&octets).unwrap_err(), Refused::Form);
}

#[test]
fn a_host_without_keys_takes_everything_and_one_with_a_key_only_what_is_authenticated() {
    let plain = request().encode();
    let open = Keyring::default();
    assert!(matches!(open.admit(&plain), Ok((octets, None)) if octets == &*plain));
    for ring in [Keyring::new(Some(key())), session(&SessionKey::draw().unwrap())] {
        assert_eq!(ring.admit(&plain).unwrap_err(), Refused::Missing);
        let other = encode(&request(), Some(&Seal { key: Key::new(5, 8, &SECRET), number: Some(1) }));
        assert_eq!(ring.admit(&other).unwrap_err(), Refused::UnknownKey);
    }
    let server = Association::new(key(), true);
    assert_eq!(server.admit(&plain).unwrap_err(), Refused::Missing);
}

fn session(handed: &SessionKey) -> Keyring {
    let ring = Keyring::default();
    ring.add(handed);
    ring
}

#[test]
fn with_a_session_key_a_request_is_taken_once_and_in_order() {
    let handed = SessionKey::draw().unwrap();
    let ring = session(&handed);
    let mut server = Association::new(handed.key(), true);
    let [first, second, third] = [(); 3].map(|()| encode(&request(), Some(&server.next_request())));
    assert!(ring.admit(&first).is_ok());
    assert_eq!(ring.admit(&first).unwrap_err(), Refused::Replayed);
    assert!(ring.admit(&third).is_ok());
    assert_eq!(ring.admit(&second).unwrap_err(), Refused::Replayed, "out of its order");
    // Handed out again, as it is after every silence.
    ring.add(&handed);
    assert_eq!(ring.admit(&third).unwrap_err(), Refused::Replayed);
    let unnumbered = encode(&request(), Some(&Seal { key: handed.key(), number: None }));
    assert_eq!(ring.admit(&unnumbered).unwrap_err(), Refused::Form);
}

#[test]
fn a_servers_next_run_brings_its_own_key_and_old_keys_make_room() {
    let keys: Vec<_> = (0..20).map(|_| SessionKey::draw().unwrap()).collect();
    let ring = Keyring::default();
    for handed in &keys {
        ring.add(handed);
        assert!(
            ring.admit(&encode(&request(), Some(&Association::new(handed.key(), true).next_request())))
                .is_ok()
        );
    }
    let oldest = encode(&request(), Some(&Association::new(keys[0].key(), true).next_request()));
    assert_eq!(ring.admit(&oldest).unwrap_err(), Refused::UnknownKey);
}

#[test]
fn a_session_key_travels_as_json_and_is_never_printed() {
    let handed = SessionKey::draw().unwrap();
    let json = serde_json::to_value(&handed).unwrap();
    assert_eq!(serde_json::from_value::<SessionKey>(json.clone()).unwrap(), handed);
    let secret = json["secret"].as_str().unwrap();
    assert_eq!(secret.len(), 64);
    let ring = session(&handed);
    for printed in [format!("{handed:?}"), format!("{:?}", handed.key()), format!("{ring:?}")] {
        assert!(!printed.contains(secret) && !printed.contains("secret"), "{printed}");
    }
    for bad in ["", "00", "zz", &"0".repeat(63), &"é".repeat(32)] {
        let mut json = json.clone();
        json["secret"] = (*bad).into();
        assert!(serde_json::from_value::<SessionKey>(json).is_err(), "{bad}");
    }
}

#[test]
fn linuxptps_key_files_are_read() {
    let hex: String = SECRET.iter().map(|octet| format!("{octet:02X}")).collect();
    let expected = encode(&request(), Some(&Seal { key: key(), number: None }));
    for text in [
        format!("[security_association]\nspp 5\n9 SHA256-128 HEX:{hex}\n"),
        format!("# ours\n\n  spp 5\nseqid_window 3\nallow_mutable 1\n9  sha256-128 32 HEX:{hex}"),
    ] {
        let seal = Seal { key: Key::read(&text).unwrap(), number: None };
        assert_eq!(*encode(&request(), Some(&seal)), *expected, "{text}");
    }
    let icv =
        |text: &str| encode(&request(), Some(&Seal { key: Key::read(text).unwrap(), number: None })).to_vec();
    let hex = icv("spp 5\n9 SHA256-128 HEX:636f72726563742d686f7273652d62617474657279");
    assert_eq!(icv("spp 5\n9 SHA256-128 ASCII:correct-horse-battery"), hex);
    assert_eq!(icv("spp 5\n9 SHA256-128 correct-horse-battery"), hex);
}

#[test]
fn key_files_that_cannot_be_used_are_refused_with_the_line() {
    for (text, sentence) in [
        ("", "there is no key in it"),
        ("1 SHA256-128 ASCII:0123456789abcdef", "line 1: a key needs a line `spp N` above it"),
        ("spp 300", "line 1: an spp lies between 0 and 255"),
        ("spp 1\n0 SHA256-128 ASCII:0123456789abcdef", "line 2: a key's number"),
        ("spp 1\n1 AES128 ASCII:0123456789abcdef", "line 2: only keys of the type SHA256-128"),
        ("spp 1\n1 SHA256-128 ASCII:short", "line 2: a secret of fewer than 16 octets"),
        ("spp 1\n1 SHA256-128 HEX:12345", "line 2: a secret is HEX:"),
        ("spp 1\n1 SHA256-128 B64:MDEyMzQ1Njc4OWFiY2RlZg==", "line 2: a secret is HEX:"),
        ("spp 1\nseqnum_length 4", "line 2: this is no line"),
        (
            "spp 1\n1 SHA256-128 0123456789abcdef\n2 SHA256-128 0123456789abcdef",
            "line 3: only one key is supported",
        ),
    ] {
        let error = Key::read(text).unwrap_err().to_string();
        assert!(error.starts_with(sentence), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn any_flipped_bit_is_noticed(number in proptest::option::of(any::<u64>()), bit in any::<proptest::sample::Index>()) {
        let mut octets = encode(&answer(), Some(&Seal { key: key(), number })).to_vec();
        let bit = bit.index(octets.len() * 8);
        octets[bit / 8] ^= 1 << (bit % 8);
        let taken = Tlv::find(&octets).and_then(|tlv| {
            key().check(&tlv)?;
            if tlv.number == number { Ok(()) } else { Err(Refused::Replayed) }
        });
        // Transparent clocks change the correction, so it is not covered.
        prop_assert_eq!(taken.is_ok(), CORRECTION_FIELD.contains(&(bit / 8)), "bit {}: {:?}", bit, taken);
    }

    #[test]
    fn a_truncated_message_is_refused(number in proptest::option::of(any::<u64>()), len in any::<proptest::sample::Index>()) {
        let octets = encode(&answer(), Some(&Seal { key: key(), number }));
        let len = len.index(octets.len());
        prop_assert!(Tlv::find(&octets[..len]).is_err());
        // As if it had been meant to be that short.
        let mut shorter = octets[..len].to_vec();
        if len > 3 {
            shorter[3] = u8::try_from(len).unwrap();
        }
        prop_assert!(Tlv::find(&shorter).and_then(|tlv| key().check(&tlv)).is_err());
    }

    #[test]
    fn another_secret_name_or_policy_does_not_do(policy: u8, id: u32, secret: [u8; 32]) {
        prop_assume!((policy, id, secret) != (5, 9, SECRET));
        let octets = encode(&answer(), Some(&Seal { key: Key::new(policy, id, &secret), number: Some(1) }));
        prop_assert!(Tlv::find(&octets).and_then(|tlv| key().check(&tlv)).is_err());
    }

    #[test]
    fn random_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..200), said: u8) {
        let mut octets = octets;
        if octets.len() > 3 {
            (octets[2], octets[3]) = (0, said);
        }
        prop_assert!(Keyring::new(Some(key())).admit(&octets).is_err());
    }
}
