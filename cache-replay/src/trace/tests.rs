//! Good traces, and what is wrong with bad ones.

use std::{
    io::{self, Cursor, Read, Write},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use liblzma::write::XzEncoder;

use super::{CHUNK, Fault, Form, Keys, LINE, Trace, TraceError};

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packer = XzEncoder::new(Vec::new(), 1);
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn packed(bytes: &[u8]) -> [(&'static str, Vec<u8>); 3] {
    [("plain", bytes.to_vec()), ("gzip", gz(bytes)), ("xz", xz(bytes))]
}

fn integers(all: impl IntoIterator<Item = u32>) -> Vec<u8> {
    all.into_iter().flat_map(u32::to_be_bytes).collect()
}

fn open(bytes: impl Into<Vec<u8>>) -> Result<Trace, TraceError> {
    Trace::read(Cursor::new(bytes.into()), Path::new("t"), None)
}

/// All keys, as text, and the form.
fn keys(mut trace: Trace) -> Result<Vec<String>, TraceError> {
    let mut all = Vec::new();
    while let Some(keys) = trace.next()? {
        match keys {
            Keys::Integers(some) => all.extend(some.iter().map(u32::to_string)),
            Keys::Lines(some) => all.extend(some.iter().map(str::to_owned)),
        }
    }
    Ok(all)
}

fn error(bytes: impl Into<Vec<u8>>) -> TraceError {
    open(bytes).and_then(keys).unwrap_err()
}

/// Noise that packs badly, so that a cut in the middle of the packed bytes is one in the middle of the keys.
fn noise(count: usize) -> impl Iterator<Item = u32> {
    (0..count).scan(1u32, |state, _| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(*state >> 8)
    })
}

#[test]
fn integers_in_any_packing() {
    let wanted: Vec<_> = noise(3 * CHUNK + 7).collect();
    for (packing, bytes) in packed(&integers(wanted.iter().copied())) {
        let trace = open(bytes).unwrap();
        assert_eq!((trace.packing(), trace.form()), (packing, Form::Integers));
        assert_eq!(keys(trace).unwrap(), wanted.iter().map(u32::to_string).collect::<Vec<_>>());
    }
}

#[test]
fn lines_in_any_packing_and_with_any_line_ends() {
    let text = "\u{feff}17\r\n\n/a page?q=1\nname with \t tab\nж\n17\nlast without an end";
    for (packing, bytes) in packed(text.as_bytes()) {
        let trace = open(bytes).unwrap();
        assert_eq!((trace.packing(), trace.form()), (packing, Form::Lines));
        let wanted = ["17", "/a page?q=1", "name with \t tab", "ж", "17", "last without an end"];
        assert_eq!(keys(trace).unwrap(), wanted);
    }
    let many: Vec<_> = noise(2 * CHUNK).map(|n| n.to_string()).collect();
    assert_eq!(keys(open(many.join("\n")).unwrap()).unwrap(), many);
}

#[test]
fn packed_files_may_be_joined() {
    let joined = [gz(b"1\n2\n"), gz(b"3\n")].concat();
    assert_eq!(keys(open(joined).unwrap()).unwrap(), ["1", "2", "3"]);
    let joined = [xz(b"1\n2\n"), xz(b"3\n")].concat();
    assert_eq!(keys(open(joined).unwrap()).unwrap(), ["1", "2", "3"]);
}

/// As gzip itself, which is given whole blocks of tapes.
#[test]
fn zeros_behind_a_gzip_file_are_ignored() {
    for zeros in [1, 3, 4096, 200_000] {
        let padded = [gz(b"1\n2\n"), vec![0; zeros]].concat();
        assert_eq!(keys(open(padded.clone()).unwrap()).unwrap(), ["1", "2"], "{zeros}");
        let joined = [padded.clone(), gz(b"3\n")].concat();
        assert_eq!(keys(open(joined).unwrap()).unwrap(), ["1", "2", "3"], "{zeros}");
        assert_eq!(error([padded, b"garbage, and not short".to_vec()].concat()).fault(), Fault::Corrupt);
    }
    // Those at the end of what is packed are its own.
    let whole = gz(&integers([1, 0]));
    assert_eq!(keys(open(whole).unwrap()).unwrap(), ["1", "0"]);
}

#[test]
fn a_form_that_was_asked_for_is_taken() {
    let bytes = b"AAAABBBB".to_vec();
    assert_eq!(keys(open(bytes.clone()).unwrap()).unwrap(), ["AAAABBBB"]);
    let trace = Trace::read(Cursor::new(bytes), Path::new("t"), Some(Form::Integers)).unwrap();
    assert_eq!(keys(trace).unwrap(), [0x4141_4141u32.to_string(), 0x4242_4242u32.to_string()]);
}

#[test]
fn a_cut_anywhere_in_packed_data_is_told() {
    let plain = integers(noise(20_000));
    for (packing, whole) in packed(&plain).into_iter().skip(1) {
        for share in [8, 50, 95] {
            let cut = error(&whole[..whole.len() * share / 100]);
            assert_eq!(cut.fault(), Fault::Cut, "{packing} at {share} %: {cut}");
            assert!(cut.to_string().contains(packing), "{cut}");
        }
        for missing in 1..=20 {
            let cut = error(&whole[..whole.len() - missing]);
            assert_eq!(cut.fault(), Fault::Cut, "{packing} less {missing}: {cut}");
        }
        for left in [7, 9, 12] {
            assert_eq!(error(&whole[..left]).fault(), Fault::Cut, "{packing}: {left} bytes");
        }
    }
}

#[test]
fn integers_come_in_fours() {
    for (packing, bytes) in packed(&integers(0..2_000)[..7_999]) {
        let error = error(bytes);
        assert_eq!(error.fault(), Fault::Cut, "{packing}");
        assert!(error.to_string().contains("3 of the 4 bytes"), "{error}");
        assert!(error.to_string().contains("after 1999 keys"), "{error}");
    }
}

#[test]
fn damage_is_told_from_a_cut() {
    for (packing, mut bytes) in packed(&integers(noise(20_000))).into_iter().skip(1) {
        let middle = bytes.len() / 2;
        for byte in &mut bytes[middle..middle + 64] {
            *byte ^= 0x5a;
        }
        let error = error(bytes);
        assert!(matches!(error.fault(), Fault::Corrupt | Fault::Cut), "{packing}: {error}");
    }
    let trailing = [gz(b"1\n"), b"trailing garbage".to_vec()].concat();
    assert_eq!(error(trailing).fault(), Fault::Corrupt);
    let trailing = [xz(b"1\n"), b"trailing garbage".to_vec()].concat();
    assert_eq!(error(trailing).fault(), Fault::Corrupt);
}

#[test]
fn an_xz_file_that_wants_too_much_memory_is_refused() {
    let mut options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
    options.dict_size(512 << 20);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    // The size is a claim in the header; the data that follow stay small.
    let stream =
        liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc64).unwrap();
    let mut packer = XzEncoder::new_stream(Vec::new(), stream);
    packer.write_all(b"1\n2\n").unwrap();
    let error = error(packer.finish().unwrap());
    assert_eq!(error.fault(), Fault::Unreadable);
    assert!(error.to_string().contains("more than 128 MiB of memory to unpack"), "{error}");
}

#[test]
fn what_is_empty_is_told() {
    for (packing, bytes) in packed(b"") {
        let error = error(bytes);
        assert_eq!(error.fault(), Fault::Empty, "{packing}");
        assert!(error.to_string().starts_with("t is empty: "), "{error}");
    }
    for (packing, bytes) in packed(b"\n\r\n\n") {
        assert_eq!(error(bytes).fault(), Fault::Empty, "{packing}");
    }
}

#[test]
fn what_is_foreign_is_told() {
    let database = b"SQLite format 3\0".as_slice();
    for (bytes, says) in [
        (b"\x28\xb5\x2f\xfd\x24\x00".as_slice(), "zstd"),
        (b"PK\x03\x04rest", "zip"),
        (b"\xff\xfe1\x002\x00", "UTF-16"),
        (database, "SQLite"),
        (b"1\n2\n\xc3\x28\n", "line 3 is not UTF-8 from its byte 1 on"),
    ] {
        let error = error(bytes);
        assert_eq!(error.fault(), Fault::Foreign);
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(error(gz(database)).to_string().contains("SQLite"), "also when it is packed");
    let long = [b"1\n".as_slice(), &vec![b'x'; LINE + 1]].concat();
    assert!(error(long).to_string().contains("line 2 is longer than"));
    let turns = [vec![b'1'; 40_000], b"\n".to_vec(), vec![b'2'; 40_000], b"\n\0\n".to_vec()].concat();
    assert!(error(turns).to_string().contains("line 3 has a zero byte"));
}

/// Its blocks would pass for integers, and there are always as many bytes of them as integers have.
#[test]
fn an_archive_is_no_trace() {
    for magic in [b"ustar\x0000".as_slice(), b"ustar  \0"] {
        let mut archive = b"keys.trace".to_vec();
        archive.resize(257, 0);
        archive.extend(magic);
        archive.resize(512, 0);
        archive.extend(b"1\n2\n");
        archive.resize(10_240, 0);
        for (packing, bytes) in packed(&archive) {
            let error = error(bytes);
            assert_eq!(error.fault(), Fault::Foreign, "{packing}");
            assert!(error.to_string().contains("tar"), "{packing}: {error}");
        }
    }
    let words = format!("{}\nustar\n", "x".repeat(256));
    assert_eq!(keys(open(words).unwrap()).unwrap().len(), 2, "a word is no archive");
}

#[test]
fn what_is_packed_twice_is_told() {
    for (once, bytes) in packed(&integers(noise(400))).into_iter().skip(1) {
        for (twice, bytes) in packed(&bytes).into_iter().skip(1) {
            let error = error(bytes);
            assert_eq!(error.fault(), Fault::Foreign, "{once} in {twice}");
            assert!(error.to_string().contains("packed twice"), "{error}");
        }
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(5))
    }
}

#[test]
fn what_cannot_be_read_is_told_with_the_systems_reason() {
    let error = Trace::read(Broken, Path::new("t"), None).and_then(keys).unwrap_err();
    assert_eq!(error.fault(), Fault::Unreadable);
    assert!(std::error::Error::source(&error).is_some());
    // In the middle of packed data as well.
    let half = gz(&integers(noise(20_000)));
    let half = Cursor::new(half[..half.len() / 2].to_vec()).chain(Broken);
    let error = Trace::read(half, Path::new("t"), None).and_then(keys).unwrap_err();
    assert_eq!(error.fault(), Fault::Unreadable, "{error}");
}
