//! The program tells usage faults by its exit code. That it is tested here also has cargo build it for the tests of other packages.

use std::process::Command;

#[test]
fn a_target_without_trust_is_refused() {
    let run = Command::new(env!("CARGO_BIN_EXE_itsup-load"))
        .args(["run", "--target", "127.0.0.1:1", "--seconds", "0.1"])
        .output()
        .expect("it runs");
    assert_eq!(run.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&run.stderr).contains("--insecure"), "{run:?}");
}
