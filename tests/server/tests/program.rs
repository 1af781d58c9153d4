//! The program starts and says where it listens. That it is tested here also has cargo build it for the tests of other packages.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

#[test]
fn it_says_where_it_listens() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_itsup-testd"))
        .args(["--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line);
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
    read.expect("a line");
    let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(ready["ready"], true, "{line}");
    let address = ready["listen"][0].as_str().expect("an address");
    assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{line}");
}
