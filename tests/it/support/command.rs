//! The command line as a person uses it: the built binary, in a folder of its own, judged by what it prints and its
//! exit code.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::database::Database;

/// A working folder with a home in it, and which registry the commands are told.
pub(crate) struct Desk {
    folder: TempDir,
    database: Option<String>,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    #[expect(dead_code, reason = "shown by Debug where a test fails")]
    command: String,
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Desk {
    /// A folder with nothing in it; its home will be at `home`.
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), database: None }
    }

    /// With a home, on SQLite.
    pub(crate) fn new() -> Self {
        let desk = Self::empty();
        desk.run("init").done();
        desk
    }

    /// With a home, on a test's database.
    pub(crate) fn on(database: &Database) -> Self {
        let desk = Self { database: Some(database.url.to_string()), ..Self::empty() };
        desk.run("init").done();
        desk
    }

    /// The same folder, told another registry.
    pub(crate) fn told(self, database: &str) -> Self {
        Self { database: Some(database.to_owned()), ..self }
    }

    /// A file of the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the home.
    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.path("home").join(name)
    }

    /// Writes a file of the folder, readable by its owner alone.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        chmod(&path, 0o600);
        path
    }

    /// `doorward --home home …`, the words parted by spaces, or as they are given.
    pub(crate) fn command<'a>(&self, words: impl Into<Words<'a>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.args(["--home", "home"]).args(words.into().0).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in [
            "DATABASE_URL",
            "DOORWARD_HOME",
            "DOORWARD_PASSPHRASE_FILE",
            "DOORWARD_LOG",
            "DOORWARD_LOG_FORMAT",
            "DOORWARD_MASTER_KEY",
            "DOORWARD_CA_PASSPHRASE",
            "CREDENTIALS_DIRECTORY",
        ] {
            command.env_remove(name);
        }
        if let Some(url) = &self.database {
            command.env("DATABASE_URL", url);
        }
        command
    }

    /// The same, told a test's Postgres by the URL that a gateway has.
    pub(crate) fn gateway_command<'a>(&self, words: impl Into<Words<'a>>) -> Command {
        let mut command = self.command(words);
        if let Some(url) = &self.database {
            command.env("DATABASE_URL", url.replacen("//postgres@", "//t_gateway@", 1));
        }
        command
    }

    pub(crate) fn run<'a>(&self, words: impl Into<Words<'a>>) -> Ran {
        Ran::of(&mut self.command(words))
    }

    /// Runs as somebody whom file modes concern: root passes them all, so from now on the folder is `nobody`'s.
    pub(crate) fn run_as_mortal(&self, words: &str) -> Ran {
        let mut command = self.command(words);
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Ran::of(&mut command);
        }
        const NOBODY: u32 = 65534;
        give(self.folder.path(), NOBODY);
        // The build's own folder may be closed to others.
        let binary = self.path("doorward");
        if !binary.exists() {
            fs::copy(env!("CARGO_BIN_EXE_doorward"), &binary).unwrap();
            chmod(&binary, 0o755);
        }
        let mut lowered = Command::new(&binary);
        lowered.args(command.get_args()).current_dir(self.folder.path()).uid(NOBODY).gid(NOBODY);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => lowered.env(name, value),
                None => lowered.env_remove(name),
            };
        }
        Ran::of(&mut lowered)
    }

    /// The modes of the files below a folder of the desk, as `mode path`, sorted.
    pub(crate) fn modes(&self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(name)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                let path = entry.path();
                let shown = path.strip_prefix(self.folder.path()).unwrap().display().to_string();
                found.push(format!("{:o} {shown}", metadata.permissions().mode() & 0o7777));
                if metadata.is_dir() {
                    folders.push(path);
                }
            }
        }
        found.sort_by(|a, b| a[4..].cmp(&b[4..]));
        found
    }
}

/// A command's words.
pub(crate) struct Words<'a>(Vec<&'a str>);

impl<'a> From<&'a str> for Words<'a> {
    fn from(line: &'a str) -> Self {
        Self(line.split_whitespace().collect())
    }
}

impl<'a> From<&'a String> for Words<'a> {
    fn from(line: &'a String) -> Self {
        line.as_str().into()
    }
}

impl<'a, const N: usize> From<[&'a str; N]> for Words<'a> {
    fn from(words: [&'a str; N]) -> Self {
        Self(words.to_vec())
    }
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        Self::new(shown, command.output().unwrap())
    }

    /// What a command that was started has done by its end.
    pub(crate) fn ended(child: Child) -> Self {
        Self::new("a command".to_owned(), child.wait_with_output().unwrap())
    }

    fn new(command: String, output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { command, code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// It did what it was asked (0).
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Its words on standard error.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is missing: {self:#?}");
        }
        self
    }

    /// It did it, and standard output is exactly one JSON value.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        assert_eq!(self.code, Some(0), "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// It did not: the exit code, nothing on standard output, and on standard error one line of what and why with these
    /// words in it, then what to do.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.out, "", "{self:#?}");
        let errors = self.err.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{self:#?}");
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self.says(words)
    }
}

#[track_caller]
pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn give(path: &Path, uid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid);
        }
    }
}

/// Sends a signal, as `kill` does.
pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits until something is so; half a minute is too long.
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a deadline over another process")]
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `openssl` in the desk's folder; its words, from both streams, and whether it was content.
pub(crate) fn openssl(desk: &Desk, line: &str) -> (bool, String) {
    let output = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(desk.path("."))
        .stdin(Stdio::null())
        .output()
        .expect("openssl is needed; on Debian: apt-get install openssl");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}
