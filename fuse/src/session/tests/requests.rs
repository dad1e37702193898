//! Requests, replies and their failures.

use layout::inode::InodeFlags;
use layout::uapi::search::{SearchReply, SearchRequest};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

fn put_json(files: &Files, dir: Ino, request: &str) -> Value {
    json(files, SessionKind::Put, dir, request, ROOT)
}

fn search_json(files: &Files, dir: Ino, request: &str) -> Value {
    json(files, SessionKind::Search, dir, request, ROOT)
}

#[test]
fn schema_is_made_once_and_read() {
    let (files, dir) = collection(3, "f16", "cosine");
    let handle = files.open(SessionKind::Schema, dir, &ROOT).expect("opens");
    let text = files.read(handle, 0, 1000).expect("reads");
    assert_eq!(text, b"{\"dim\":3,\"element\":\"f16\",\"metric\":\"cosine\"}\n");
    let error = files.write(handle, 0, br#"{"dim":3,"element":"f16","metric":"l2"}"#).unwrap_err();
    assert_eq!(error.errno, libc::EEXIST, "{error}");
    let told: Value = serde_json::from_slice(&files.read(handle, 0, 1000).expect("reads")).expect("JSON");
    assert_eq!(told["errno"], libc::EEXIST);

    let plain = make(&files, ROOT_INO, "plain", Kind::Dir, ROOT, 0o755);
    for (text, word) in [
        (r#"{"dim":0,"element":"f32","metric":"l2"}"#, "dim"),
        (r#"{"dim":3,"element":"f64","metric":"l2"}"#, "element"),
        (r#"{"dim":3,"element":"f32","metric":"hamming"}"#, "metric"),
        (r#"{"dim":3,"element":"f32","metric":"l2","x":1}"#, "unknown field"),
        ("dim=3", "not a schema"),
    ] {
        let handle = files.open(SessionKind::Schema, plain, &ROOT).expect("opens");
        let error = files.write(handle, 0, text.as_bytes()).unwrap_err();
        assert!(error.errno == libc::EINVAL && error.message.contains(word), "{text}: {error}");
    }
    let handle = files.open(SessionKind::Schema, plain, &ROOT).expect("opens");
    let none = files.read(handle, 0, 1000).expect("reads");
    assert!(String::from_utf8_lossy(&none).contains("not in a collection"));
    let (one, two) = br#"{"dim":3,"element":"i8","metric":"ip"}"#.split_at(9);
    assert_eq!(files.write(handle, 0, one), Ok(9), "the beginning of a schema waits for the rest");
    assert_eq!(files.write(handle, 9, two), Ok(two.len()));
    assert_eq!(
        files.read(handle, 0, 1000).expect("reads"),
        b"{\"dim\":3,\"element\":\"i8\",\"metric\":\"ip\"}\n"
    );
}

#[test]
fn json_put_then_search_then_stats() {
    let (files, dir) = collection(2, "f32", "l2");
    let a = file(&files, dir, "a");
    file(&files, dir, "b");
    let reply = put_json(
        &files,
        dir,
        r#"{"file":"a","rows":[{"vector":[0,1],"offset":5,"length":7,"tag":3},{"vector":[9,9],"length":2}]}"#,
    );
    assert_eq!(reply["ino"], a.0);
    assert_eq!((&reply["first_row"], &reply["count"]), (&0.into(), &2.into()));
    put_json(&files, dir, r#"{"file":"b","rows":[{"vector":[0,3],"length":1}]}"#);

    let reply = search_json(&files, dir, r#"{"vector":[0,0],"k":2}"#);
    assert_eq!(reply["rows_scanned"], 3);
    let first: Value = serde_json::from_str(&format!(
        r#"{{"path":"a","ino":{},"offset":5,"length":7,"distance":1.0,"row":0,"tag":3,"stale":false}}"#,
        a.0
    ))
    .expect("JSON");
    assert_eq!(reply["results"][0], first);
    assert_eq!(paths(&reply), ["a", "b"]);
    assert_eq!(paths(&search_json(&files, dir, r#"{"vector":[0,0],"tags_any":2}"#)), ["a"]);
    assert_eq!(paths(&search_json(&files, dir, r#"{"vector":[0,0],"tags_any":4}"#)), [""; 0]);

    let handle = files.open(SessionKind::Stats, dir, &ROOT).expect("opens");
    let stats: Value = serde_json::from_slice(&files.read(handle, 0, 1000).expect("reads")).expect("JSON");
    assert_eq!((&stats["rows_live"], &stats["rows_total"]), (&3.into(), &3.into()));
    put_json(&files, dir, r#"{"file":"b","rows":[]}"#);
    let stats: Value = serde_json::from_slice(&files.read(handle, 0, 1000).expect("reads")).expect("JSON");
    assert_eq!(stats["rows_live"], 2, "stats are read anew");
    assert_eq!(files.write(handle, 0, b"x").unwrap_err().errno, libc::EACCES);
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let (files, dir) = collection(3, "f32", "cosine");
    file(&files, dir, "a");
    make(&files, dir, "d", Kind::Dir, ROOT, 0o755);
    for (request, word) in [
        (r#"{"vector":[1,2]}"#, "2 elements"),
        (r#"{"vector":[]}"#, "0 elements"),
        (r#"{"vector":[1,2,NaN]}"#, "JSON"),
        (r#"{"vector":[1,2,1e39]}"#, "NaN or infinite"),
        (r#"{"vector":[0,0,0]}"#, "norm is 0"),
        (r#"{"vector":[1,2,3],"k":0}"#, "k must be"),
        (r#"{"vector":[1,2,3],"k":10001}"#, "k must be"),
        (r#"{"vector":[1,2,3],"subdir":"nope"}"#, "not found"),
        (r#"{"vector":[1,2,3],"subdir":"a"}"#, "not a directory"),
        (r#"{"vector":[1,2,3],"subdir":"../x"}"#, ".."),
        (r#"{"vector":[1,2,3],"subdirs":"x"}"#, "unknown field"),
        (r#"{"vector":[1,2,3]"#, "EOF"),
    ] {
        let reply = search_json(&files, dir, request);
        let error = reply["error"].as_str().unwrap_or_else(|| panic!("{request} gave {reply}"));
        assert!(error.contains(word), "{request}: {error}");
        assert!(reply["errno"].as_i64() > Some(0));
    }
    for (request, word) in [
        (r#"{"file":"a","rows":[{"vector":[1,2],"length":1}]}"#, "2 elements"),
        (r#"{"file":"a","rows":[{"vector":[0,0,0],"length":1}]}"#, "norm is 0"),
        (r#"{"file":"a","rows":[{"vector":[1,1,1],"offset":9223372036854775807,"length":1}]}"#, "2^63"),
        (r#"{"file":"x","rows":[]}"#, "not found"),
        (r#"{"file":"d","rows":[]}"#, "regular file"),
        (r#"{"file":"/a","rows":[]}"#, "relative"),
        (r#"{"file":"a/b","rows":[]}"#, "not a directory"),
        (r#"{"file":"a","publish_as":"x/y","rows":[]}"#, "slash"),
        (r#"{"file":"a","publish_as":"d","rows":[]}"#, "is a directory"),
    ] {
        let reply = put_json(&files, dir, request);
        let error = reply["error"].as_str().unwrap_or_else(|| panic!("{request} gave {reply}"));
        assert!(error.contains(word), "{request}: {error}");
    }
    let plain = make(&files, ROOT_INO, "plain", Kind::Dir, ROOT, 0o755);
    let reply = search_json(&files, plain, r#"{"vector":[1,2,3]}"#);
    assert!(reply["error"].as_str().is_some_and(|error| error.contains("not in a collection")));
    assert_eq!(
        files.open(SessionKind::Search, file(&files, dir, "f"), &ROOT).unwrap_err().errno,
        libc::ENOTDIR
    );
    assert_eq!(files.read(4711, 0, 1).unwrap_err().errno, libc::EBADF);
}

#[test]
fn binary_and_json_give_the_same_answer() {
    let (files, dir) = collection(2, "f32", "ip");
    let sub = make(&files, dir, "sub", Kind::Dir, ROOT, 0o755);
    file(&files, sub, "a");
    file(&files, dir, "b");
    put(&files, dir, "sub/a", 2, 1, [1f32, 2.0, 3.0, 4.0].as_bytes());
    put(&files, sub, "a", 2, 1, [1f32, 2.0, 3.0, 5.0].as_bytes());
    put(&files, dir, "b", 2, 1, [3f32, 3.0].as_bytes());
    for (at, subdir) in [(dir, ""), (dir, "sub"), (sub, "")] {
        let query = [1f32, 1.0];
        let request = SearchRequest {
            fresh_only: false,
            tags_any: 0,
            k: 10,
            dim: 2,
            element: 1,
            query: query.as_bytes(),
            subdir: subdir.as_bytes(),
        };
        let mut bytes = [0; 256];
        let len = request.encode(&mut bytes).expect("encodes");
        let reply = ask(&files, SessionKind::Search, at, &bytes[..len], ROOT);
        let reply = SearchReply::parse(&reply).expect("a reply");
        assert_eq!((reply.errno, reply.message), (0, ""));
        let told = search_json(&files, at, &format!(r#"{{"vector":[1,1],"subdir":"{subdir}"}}"#));
        assert_eq!(reply.rows_scanned, told["rows_scanned"].as_u64().expect("a number"));
        let results = told["results"].as_array().expect("results");
        assert_eq!(results.len(), if at == dir && subdir.is_empty() { 3 } else { 2 });
        assert_eq!(reply.hits().len(), results.len());
        for (hit, told) in reply.hits().zip(results) {
            assert_eq!(hit.path, told["path"].as_str().expect("path").as_bytes());
            assert_eq!(hit.distance, told["distance"].as_f64().expect("a number"));
            assert_eq!(hit.row, told["row"].as_u64().expect("a number"));
        }
        let best = if at == sub { "a" } else { "sub/a" };
        assert_eq!(results[0]["path"], best);
        assert_eq!(results[0]["distance"], -8.0);
    }
    let reply = ask(&files, SessionKind::Search, dir, b"VEXFSSE1", ROOT);
    let reply = SearchReply::parse(&reply).expect("failures are binary as well");
    assert_eq!(reply.errno, libc::EINVAL);
    assert!(reply.message.contains("shorter"));
}

#[test]
fn a_put_publishes_file_and_rows_together() {
    let (files, dir) = collection(2, "f32", "l2");
    let part = file(&files, dir, "a.part");
    let old = file(&files, dir, "a");
    put_json(&files, dir, r#"{"file":"a","rows":[{"vector":[0,0],"length":1}]}"#);
    let reply =
        put_json(&files, dir, r#"{"file":"a.part","publish_as":"a","rows":[{"vector":[1,1],"length":1}]}"#);
    assert_eq!(reply["ino"], part.0);
    let fs = files.access.read();
    assert_eq!(fs.lookup(dir, b"a").expect("there").ino, part);
    assert!(fs.lookup(dir, b"a.part").is_err());
    assert!(fs.inode(old).expect("an orphan").flags.contains(InodeFlags::ORPHAN));
    drop(fs);
    let reply = search_json(&files, dir, r#"{"vector":[0,0]}"#);
    assert_eq!(paths(&reply), ["a"], "the replaced file's row is gone at once");
    assert_eq!(reply["results"][0]["ino"], part.0);
}

#[test]
fn a_search_sees_every_row_put_before_it() {
    let (files, dir) = collection(2, "f32", "l2");
    for i in 0..200 {
        // Each row is nearer than all before, in chunks that were searched when they were half full.
        file(&files, dir, &i.to_string());
        let put = format!(r#"{{"file":"{i}","rows":[{{"vector":[{},0],"length":1}}]}}"#, 1000 - i);
        put_json(&files, dir, &put);
        let reply = search_json(&files, dir, r#"{"vector":[0,0],"k":1}"#);
        assert_eq!(paths(&reply), [i.to_string()]);
        assert_eq!(reply["results"][0]["distance"], f64::from((1000 - i) * (1000 - i)));
    }
    // A collection made under the numbers of a removed one must not show its vectors.
    let schema = files.access.read().rows_file(dir).expect("reads");
    change(&files, |fs| {
        for i in 0..200 {
            let inode = fs.unlink(dir, i.to_string().as_bytes(), now()).expect("unlinks");
            fs.reap(inode.ino).expect("frees");
        }
        fs.rmdir(ROOT_INO, b"c", now()).expect("removes");
        fs.reap(dir).expect("frees");
        layout::testing::commit(fs, now());
    });
    let again = make(&files, ROOT_INO, "c", Kind::Dir, ROOT, 0o755);
    change(&files, |fs| fs.collection_create(again, *schema.schema(), now())).expect("makes it");
    let rows = files.access.read().rows_file(again).expect("reads");
    assert_eq!(rows.inode.ino, schema.inode.ino, "the rows file has the same number");
    file(&files, again, "new");
    let far: Vec<u8> = (0..128).flat_map(|_| [5000f32, 0.0]).flat_map(f32::to_le_bytes).collect();
    put(&files, again, "new", 2, 1, &far);
    let reply = search_json(&files, again, r#"{"vector":[0,0],"k":1}"#);
    assert_eq!(reply["results"][0]["distance"], 25_000_000.0);
}

#[test]
fn edits_make_rows_stale_and_fresh_only_leaves_them_out() {
    let (files, dir) = collection(2, "f32", "l2");
    let a = file(&files, dir, "a");
    put_json(&files, dir, r#"{"file":"a","rows":[{"vector":[1,1],"length":1}]}"#);
    change(&files, |fs| {
        fs.prepare_write(a, 0, 1).expect("writes");
        fs.finish_write(a, 1, now()).expect("writes");
    });
    let reply = search_json(&files, dir, r#"{"vector":[0,0]}"#);
    assert_eq!(reply["results"][0]["stale"], true);
    assert_eq!(paths(&search_json(&files, dir, r#"{"vector":[0,0],"fresh_only":true}"#)), [""; 0]);
}

#[test]
fn stale_names_the_files_that_changed_and_that_the_caller_may_read() {
    let (files, dir) = collection(2, "f32", "l2");
    let sub = make(&files, dir, "sub", Kind::Dir, ROOT, 0o755);
    for i in 0..70 {
        let (at, path) = if i % 2 == 0 { (dir, format!("f{i}")) } else { (sub, format!("sub/f{i}")) };
        let ino = make(&files, at, &format!("f{i}"), Kind::File, ROOT, if i < 10 { 0o600 } else { 0o644 });
        put_json(
            &files,
            dir,
            &format!(
                r#"{{"file":"{path}","rows":[{{"vector":[1,1],"length":1}},{{"vector":[2,2],"length":1}}]}}"#
            ),
        );
        if i % 5 == 0 {
            change(&files, |fs| fs.prepare_write(ino, 0, 1).map(drop)).expect("writes");
        }
    }
    let stale = |dir, caller| -> Value {
        let handle = files.open(SessionKind::Stale, dir, &caller).expect("opens");
        let reply = files.read(handle, 0, 1 << 20).expect("reads");
        assert_eq!(files.write(handle, 0, b"x").unwrap_err().errno, libc::EACCES);
        files.release(handle);
        serde_json::from_slice(&reply).expect("JSON")
    };
    let counts =
        |reply: &Value| ["rows", "rows_stale", "files_stale"].map(|key| reply[key].as_u64().unwrap_or(0));
    let all = stale(dir, ROOT);
    assert_eq!(counts(&all), [140, 28, 14]);
    assert_eq!((all["files"].as_array().map(Vec::len), &all["more"]), (Some(14), &false.into()));
    assert_eq!((&all["files"][1]["path"], &all["files"][1]["rows_stale"]), (&"sub/f5".into(), &2.into()));
    assert_eq!(counts(&stale(sub, ROOT)), [70, 14, 7]);
    assert_eq!(stale(sub, ROOT)["files"][0]["path"], "f5");
    let other = Caller { uid: 7, gid: 7, pid: 0 };
    assert_eq!(counts(&stale(dir, other)), [120, 24, 12]);
    assert_eq!(stale(ROOT_INO, ROOT)["errno"], libc::EINVAL);
}

#[test]
fn a_file_moved_out_is_not_found_until_it_comes_back() {
    let (files, dir) = collection(2, "f32", "l2");
    let sub = make(&files, dir, "sub", Kind::Dir, ROOT, 0o755);
    let a = file(&files, dir, "a");
    put_json(&files, dir, r#"{"file":"a","rows":[{"vector":[1,1],"length":1}]}"#);
    let found = |query: &str| -> Vec<String> {
        paths(&search_json(&files, dir, query)).into_iter().map(str::to_string).collect()
    };
    let flags = layout::fs::RenameFlags::empty();
    change(&files, |fs| fs.rename(dir, b"a", ROOT_INO, b"a", flags, now())).expect("moves");
    assert!(found(r#"{"vector":[0,0]}"#).is_empty());
    change(&files, |fs| fs.rename(ROOT_INO, b"a", sub, b"b", flags, now())).expect("moves");
    assert_eq!(found(r#"{"vector":[0,0]}"#), ["sub/b"]);

    // Two links, and the one that place knows goes away: the other one is looked for.
    change(&files, |fs| {
        fs.link(a, sub, b"c", now()).expect("links");
        fs.unlink(sub, b"b", now()).expect("unlinks");
        assert_eq!(fs.inode(a).expect("there").place_dir, Ino(0), "the place is unknown now");
    });
    assert_eq!(found(r#"{"vector":[0,0]}"#), ["sub/c"]);
    assert_eq!(found(r#"{"vector":[0,0],"subdir":"sub"}"#), ["sub/c"]);
    change(&files, |fs| fs.unlink(sub, b"c", now())).expect("unlinks");
    assert!(found(r#"{"vector":[0,0]}"#).is_empty(), "an orphan is deleted, even if open");
}

#[test]
fn the_vector_attribute_is_a_put_of_one_row() {
    let (files, dir) = collection(2, "f16", "cosine");
    let a = file(&files, dir, "a");
    change(&files, |fs| fs.finish_write(a, 100, now())).expect("writes");
    assert_eq!(files.vector(a, &ROOT).unwrap_err().errno, libc::ENODATA);
    assert_eq!(files.remove_vector(a, &ROOT).unwrap_err().errno, libc::ENODATA);
    let halves = [0x00, 0x3c, 0x00, 0x40];
    assert_eq!(files.set_vector(a, &halves, Some(true), &ROOT).unwrap_err().errno, libc::ENODATA);
    assert_eq!(files.set_vector(a, &halves, None, &ROOT), Ok(()));
    assert_eq!(files.vector(a, &ROOT), Ok(halves.to_vec()));
    assert_eq!(files.set_vector(a, &halves, Some(false), &ROOT).unwrap_err().errno, libc::EEXIST);
    assert_eq!(files.set_vector(a, [2f32, 1.0].as_bytes(), Some(true), &ROOT), Ok(()), "f32 is converted");
    assert_eq!(files.vector(a, &ROOT), Ok(vec![0x00, 0x40, 0x00, 0x3c]));
    let reply = search_json(&files, dir, r#"{"vector":[2,1]}"#);
    assert_eq!((&reply["results"][0]["offset"], &reply["results"][0]["length"]), (&0.into(), &100.into()));
    for bad in [&[][..], &[0; 2], &[0; 4], &[0; 6], &[0; 9]] {
        assert_eq!(files.set_vector(a, bad, None, &ROOT).unwrap_err().errno, libc::EINVAL, "{bad:?}");
    }
    assert_eq!(files.remove_vector(a, &ROOT), Ok(()));
    assert_eq!(files.vector(a, &ROOT).unwrap_err().errno, libc::ENODATA);
    let outside = file(&files, ROOT_INO, "outside");
    assert_eq!(files.set_vector(outside, &halves, None, &ROOT).unwrap_err().errno, libc::EOPNOTSUPP);
    assert_eq!(files.set_vector(dir, &halves, None, &ROOT).unwrap_err().errno, libc::EOPNOTSUPP);
}

#[test]
fn one_descriptor_serves_request_after_request_with_and_without_seeks() {
    let (files, dir) = collection(2, "f32", "l2");
    let handle = files.open(SessionKind::Search, dir, &ROOT).expect("opens");
    let asked = files.read(handle, 0, 1000).expect("reads");
    assert!(String::from_utf8_lossy(&asked).contains("write a request first"));
    let request = br#"{"vector":[1,1]}"#;
    let end = request.len() as u64;
    let expected = b"{\"epoch\":2,\"rows_scanned\":0,\"results\":[]}\n";
    for _ in 0..2 {
        files.write(handle, 0, &request[..5]).expect("writes");
        files.write(handle, 5, &request[5..]).expect("writes");
        let reply = files.read(handle, 0, 1000).expect("reads");
        assert!(reply.starts_with(b"{\"epoch\":"));
        assert_eq!(reply.len(), expected.len());
        assert_eq!(files.read(handle, 5, 4).expect("reads"), reply[5..9]);
    }
    // As a shell does it: the offset goes on from write to read, and to the next write.
    files.write(handle, 0, request).expect("writes");
    let reply = files.read(handle, end, 1000).expect("reads");
    assert!(reply.starts_with(b"{\"epoch\":"));
    let next = end + reply.len() as u64;
    assert!(files.read(handle, next, 1000).expect("reads").is_empty());
    files.write(handle, next, request).expect("writes");
    assert_eq!(files.read(handle, next + end, 1000).expect("reads"), reply);

    files.write(handle, 0, b"{").expect("writes");
    assert_eq!(files.write(handle, 5, b"}").unwrap_err().errno, libc::EINVAL, "a gap");
}

#[test]
fn requests_are_bounded_each_and_together() {
    let fs = mount(&MemStore::formatted(format_params())).expect("mounts");
    let settings = SessionSettings { threads: 1, cache_bytes: 0, buffer_bytes: 100 << 20 };
    let files = SessionFiles::new(RwLock::new(fs), settings);
    let part = vec![b' '; 16 << 20];
    let fill = |handle, parts: u64| {
        (0..parts).try_for_each(|i| files.write(handle, i * (16 << 20), &part).map(drop))
    };
    let one = files.open(SessionKind::Put, ROOT_INO, &ROOT).expect("opens");
    assert_eq!(fill(one, 4), Ok(()));
    assert_eq!(files.write(one, 64 << 20, b"x").unwrap_err().errno, libc::EFBIG);
    let two = files.open(SessionKind::Put, ROOT_INO, &ROOT).expect("opens");
    assert_eq!(fill(two, 3).unwrap_err().errno, libc::ENOMEM);
    files.release(one);
    files.release(two);
    let three = files.open(SessionKind::Put, ROOT_INO, &ROOT).expect("opens");
    assert_eq!(fill(three, 4), Ok(()), "released handles give their memory back");
}

#[test]
fn a_put_is_done_once_though_no_room_is_left_for_its_reply() {
    let fs = mount(&MemStore::formatted(format_params())).expect("mounts");
    let request = br#"{"file":"f","append":true,"rows":[{"vector":[1],"length":1}]}"#;
    let settings = SessionSettings { threads: 1, cache_bytes: 0, buffer_bytes: request.len() };
    let files = SessionFiles::new(RwLock::new(fs), settings);
    let dir = make(&files, ROOT_INO, "c", Kind::Dir, ROOT, 0o755);
    let schema = files.open(SessionKind::Schema, dir, &ROOT).expect("opens");
    files.write(schema, 0, br#"{"dim":1,"element":"f32","metric":"l2"}"#).expect("makes a collection");
    files.release(schema);
    let f = file(&files, dir, "f");
    let handle = files.open(SessionKind::Put, dir, &ROOT).expect("opens");
    files.write(handle, 0, request).expect("fits");
    for _ in 0..2 {
        let reply = files.read(handle, 0, 1000).expect("a reply");
        assert!(reply.starts_with(b"{\"ino\""), "{}", reply.escape_ascii());
    }
    assert_eq!(files.access.read().inode(f).expect("there").row_count, 1);
}

#[test]
fn a_put_that_cannot_publish_takes_no_rows_away() {
    let (files, dir) = collection(1, "f32", "l2");
    let f = file(&files, dir, "f");
    put_json(&files, dir, r#"{"file":"f","rows":[{"vector":[1],"length":1}]}"#);
    let refused = put_json(&files, dir, r#"{"file":"f","publish_as":".vexfs","rows":[]}"#);
    assert_eq!(refused["errno"], libc::EPERM);
    assert_eq!(files.access.read().inode(f).expect("there").row_count, 1);
}

proptest! {
    #[test]
    fn any_request_gets_a_reply(
        request in proptest::collection::vec(any::<u8>(), 1..200),
        kind in 0..3usize,
        start in 0..4usize,
    ) {
        let (files, dir) = collection(2, "f32", "cosine");
        let starts: [&[u8]; 4] = [b"", b"{\"", b"VEXFSSE1\x01\0\0\0\0\0\0\0", b"VEXFSPU1\x01\0\0\0\0\0\0\0"];
        let mut bytes = starts[start].to_vec();
        bytes.extend(request);
        if bytes.len() >= 24 && start > 1 {
            let total = (bytes.len() as u64).to_le_bytes();
            bytes[16..24].copy_from_slice(&total);
        }
        let kind = [SessionKind::Put, SessionKind::Search, SessionKind::Schema][kind];
        let handle = files.open(kind, dir, &ROOT).expect("opens");
        let wrote = files.write(handle, 0, &bytes);
        prop_assert!(kind == SessionKind::Schema || wrote == Ok(bytes.len()));
        let reply = files.read(handle, 0, 1 << 20).expect("reads");
        prop_assert!(!reply.is_empty());
    }
}
