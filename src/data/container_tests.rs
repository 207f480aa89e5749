//! Every type read, every fault named, and what is written read back.

use super::*;
use crate::text::Message;

fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

#[test]
fn a_directory_is_read_in_order_of_name_and_other_files_are_left_alone() {
    let dir = dir_with(&[
        ("b.json", r#"{"type":"text_only","instances":[{"text":"two"}]}"#),
        ("a.json", r#"{"instances":[{"text":"one"}],"type":"text_only"}"#),
        ("c.jsonl", "{\"text\":\"three\"}\n\n{\"text\":\"four\"}\n"),
        ("notes.txt", "not json"),
    ]);
    let set = read(dir.path()).unwrap();
    assert_eq!(set.kind, Kind::TextOnly);
    let wanted = ["one", "two", "three", "four"].map(|t| Record::TextOnly(t.into()));
    assert_eq!(set.records, wanted);
}

#[test]
fn every_type_is_read_from_its_keys_in_lines_and_by_name_in_containers() {
    let dialogue = Conversation { messages: vec![message("user", "u")], ..Conversation::default() };
    let cases: [(Kind, &str, Record); 9] = [
        (Kind::TextOnly, r#"{"text":"t"}"#, Record::TextOnly("t".into())),
        (
            Kind::Text2Text,
            r#"{"input":"i","output":"o"}"#,
            Record::Text2Text { input: "i".into(), output: "o".into() },
        ),
        (
            Kind::Conversation,
            r#"{"conversation_id":7,"system":"s","tools":["x"],
                "messages":[{"role":"user","content":"u"}]}"#,
            Record::Conversation(Conversation {
                system: Some("s".into()),
                id: Some("7".into()),
                tools: vec![json!("x")],
                ..dialogue.clone()
            }),
        ),
        (
            Kind::PairedConversation,
            r#"{"chosen":{"messages":[{"role":"user","content":"u"}]},
                "rejected":{"messages":[{"role":"user","content":"u"}],"system":null}}"#,
            Record::PairedConversation { chosen: dialogue.clone(), rejected: dialogue },
        ),
        (
            Kind::PairedTextToText,
            r#"{"prompt":"p","chosen":"c","rejected":"r","margin":0.5}"#,
            Record::PairedTextToText {
                prompt: "p".into(),
                chosen: "c".into(),
                rejected: "r".into(),
                margin: Some(0.5),
            },
        ),
        (
            Kind::TextToTextlist,
            r#"{"input":"i","output":["a","b"]}"#,
            Record::TextToTextlist(TextList {
                input: "i".into(),
                output: vec!["a".into(), "b".into()],
            }),
        ),
        (
            Kind::TextToScoredTextlist,
            r#"{"input":"i","output":[{"score":1.5,"text":"a"}]}"#,
            Record::TextToScoredTextlist { input: "i".into(), output: vec![(1.5, "a".into())] },
        ),
        (Kind::FloatOnly, r#"{"value":2}"#, Record::FloatOnly(2.0)),
        (
            Kind::Tokenized,
            r#"{"input_ids":[1,2],"labels":[-100,2]}"#,
            Record::Tokenized { input_ids: vec![1, 2], labels: Some(vec![-100, 2]) },
        ),
    ];
    for (kind, instance, record) in cases {
        let line = instance.replace('\n', " ");
        let dir = dir_with(&[("x.jsonl", &line)]);
        let wanted = DataSet { kind, records: vec![record] };
        assert_eq!(read(&dir.path().join("x.jsonl")).unwrap(), wanted, "{}", kind.name());
        if kind != Kind::Tokenized {
            let text = format!(r#"{{"type":"{}","instances":[{instance}]}}"#, kind.name());
            let dir = dir_with(&[("x.json", &text)]);
            assert_eq!(read(dir.path()).unwrap(), wanted, "{}", kind.name());
        }
    }
}

#[test]
fn faults_name_the_file_the_place_the_key_the_found_and_the_wanted() {
    let cases: [(&str, &str, &[&str]); 20] = [
        ("x.json", "{", &["x.json", "not JSON", "line 1"]),
        ("x.json", "[]", &["a list", "wanted an object"]),
        ("x.json", r#"{"instances":[]}"#, &["\"type\" not there"]),
        ("x.json", r#"{"type":"text_only"}"#, &["\"instances\" not there"]),
        ("x.json", r#"{"type":3,"instances":[]}"#, &["\"type\": a number", "a string"]),
        ("x.json", r#"{"type":"txt","instances":[]}"#, &["\"txt\"", "text_only, text2text"]),
        ("x.json", r#"{"type":"tokenized","instances":[]}"#, &["\"tokenized\"", "wanted one of"]),
        ("x.json", r#"{"type":"image_text","instances":[]}"#, &["not supported", "image_text"]),
        ("x.json", r#"{"type":"text_only","instances":{}}"#, &["\"instances\": an object"]),
        ("x.json", r#"{"type":"text_only","instances":[]}"#, &["no records"]),
        (
            "x.json",
            r#"{"type":"text_only","instances":[{"text":"a"},{"txt":"b"}]}"#,
            &["x.json, instance 1", "\"text\"", "found \"txt\"", "wanted a string"],
        ),
        (
            "x.json",
            r#"{"type":"text_only","instances":["a"]}"#,
            &["instance 0", "a string, wanted an object"],
        ),
        (
            "x.json",
            r#"{"type":"text2text","instances":[{"input":"a","output":["b"]}]}"#,
            &["instance 0", "\"output\": a list, wanted a string"],
        ),
        (
            "x.json",
            r#"{"type":"conversation","instances":[{"messages":[{"role":"user","content":1}]}]}"#,
            &["instance 0", "\"messages[0].content\": a number, wanted a string"],
        ),
        (
            "x.json",
            r#"{"type":"conversation","instances":[{"messages":[]}]}"#,
            &["\"messages\"", "at least one message"],
        ),
        (
            "x.json",
            r#"{"type":"paired_conversation","instances":[{"chosen":{"messages":[3]},"rejected":{}}]}"#,
            &["chosen.messages[0]: a number, wanted an object"],
        ),
        ("x.jsonl", "{\"text\":\"a\"}\n{\"text\":\n", &["x.jsonl, line 2", "not JSON", "column"]),
        (
            "x.jsonl",
            "{\"text\":\"a\"}\n\n{\"value\":1}\n",
            &["line 3", "\"float_only\"", "\"text_only\""],
        ),
        ("x.jsonl", "{\"txt\":\"a\"}", &["line 1", "keys [txt]", "input_ids"]),
        ("x.jsonl", "{\"input_ids\":[1,-2]}", &["\"input_ids[1]\": -2, wanted a token id"]),
    ];
    for (name, text, parts) in cases {
        let dir = dir_with(&[(name, text)]);
        let error = read(dir.path()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{text}: {error:?} lacks {part:?}");
        }
    }
}

#[test]
fn labels_must_fit_their_ids() {
    let cases = [
        ("{\"input_ids\":[1,2],\"labels\":[1]}", "1 entries, wanted as many as input_ids has, 2"),
        ("{\"input_ids\":[1],\"labels\":[-5]}", "\"labels[0]\": -5"),
        ("{\"input_ids\":[]}", "an empty list"),
        ("{\"input_ids\":[1.5]}", "1.5, wanted a token id"),
        ("{\"input_ids\":[4294967296]}", "4294967296"),
    ];
    for (text, part) in cases {
        let dir = dir_with(&[("x.jsonl", text)]);
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn mixed_types_name_both_files() {
    let dir = dir_with(&[
        ("a.json", r#"{"type":"text_only","instances":[{"text":"one"}]}"#),
        ("b.json", r#"{"type":"float_only","instances":[{"value":1}]}"#),
    ]);
    let error = read(dir.path()).unwrap_err().to_string();
    for part in ["b.json", "a.json", "float_only", "text_only"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn missing_paths_and_empty_directories_are_errors() {
    let dir = dir_with(&[]);
    assert!(read(dir.path()).unwrap_err().to_string().contains("no *.json"));
    assert!(matches!(read(&dir.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn what_is_written_reads_back_and_leaves_no_temporary_file() {
    let dir = dir_with(&[]);
    let path = dir.path().join("out.json");
    let records = vec![
        TextList { input: "a\n\"q\"".into(), output: vec!["🦙".into(), String::new()] },
        TextList { input: "b".into(), output: vec![] },
    ];
    write_textlist(&path, &[]).unwrap();
    write_textlist(&path, &records).unwrap();
    let set = read(dir.path()).unwrap();
    let wanted: Vec<Record> = records.into_iter().map(Record::TextToTextlist).collect();
    assert_eq!((set.kind, set.records), (Kind::TextToTextlist, wanted));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let conversation = Conversation {
        messages: vec![message("user", "u"), message("assistant", "a")],
        system: Some("s".into()),
        ..Conversation::default()
    };
    write_conversation(&path, &conversation).unwrap();
    assert_eq!(conversation.with_system()[0], message("system", "s"));
    assert_eq!(read(&path).unwrap().records, [Record::Conversation(conversation)]);
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let dir = dir_with(&[]);
    let missing = dir.path().join("no/such/dir/out.json");
    assert!(matches!(write_textlist(&missing, &[]), Err(Error::Io { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
