//! Another world for a program: a kernel without IPv6, other files in /etc, a network of its own, a small disk.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::libc;

use super::run;

/// Has the kernel refuse this program IPv6 sockets, as one without IPv6 does.
pub(crate) fn without_ipv6(command: &mut Command) -> &mut Command {
    let refuse = || {
        let word = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        let equals = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let answer = libc::BPF_RET as u16;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let error = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;
        let mut filter = [
            // The system call's number, and then the low half of its first argument.
            step(word, 0, 0, 0),
            step(equals, 0, 3, libc::SYS_socket as u32),
            step(word, 0, 0, 16),
            step(equals, 0, 1, libc::AF_INET6 as u32),
            step(answer, 0, 0, error),
            step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: plain system calls; the program they read lives until they return.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes system calls and nothing else: no allocation, no lock.
    unsafe { command.pre_exec(refuse) }
}

/// The words before a program's own that start it with other files in place of these paths, for itself alone.
///
/// What is written into such a file later, it sees too.
pub(crate) fn with_files_over(files: &[(&str, &Path)]) -> Vec<String> {
    let script = r#"while [ "$1" != -- ]; do mount --bind "$2" "$1" && shift 2 || exit; done; shift && exec "$@""#;
    let mut all = [unshare("--mount"), words(&["sh", "-c", script, "sh"])].concat();
    for (path, file) in files {
        all.extend([(*path).to_owned(), file.display().to_string()]);
    }
    all.push("--".into());
    all
}

/// The words before a program's own that start it in a network of its own, whose loopback has `address` (with `/32`) too.
pub(crate) fn with_own_network(address: &str) -> Vec<String> {
    let script = r#"ip link set lo up && ip address add "$1" dev lo && shift && exec "$@""#;
    [unshare("--net"), words(&["sh", "-c", script, "sh", address])].concat()
}

/// A command in the network of a process that was started by [`with_own_network`].
pub(crate) fn in_network_of(pid: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net"]);
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.arg(program);
    command
}

/// A small disk of its own.
pub(crate) struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// Puts one over a folder, which must be empty. Only root may.
    pub(crate) fn mount(at: &'a Path) -> SmallDisk<'a> {
        let options = "size=2m,mode=755";
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "itsup-test"]).arg(at)).ok();
        SmallDisk(at)
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        let block = [0; 512];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    /// Has room on it again.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: what is still running in it goes first or last.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Who is not root is root in a user namespace.
fn unshare(what: &str) -> Vec<String> {
    let mut unshare = words(&["unshare", what]);
    if !nix::unistd::geteuid().is_root() {
        unshare.push("--map-root-user".into());
    }
    unshare
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
