#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::fuzz::nbd_tls(data));
