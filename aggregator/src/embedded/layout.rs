//! Where things of the private server are: `<data_dir>/postgres/{lock,data,run}`, and who owns them.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::AccessFlags;

use super::EmbeddedError;
use super::user::RunAs;

/// Only a part of the socket's file name: nothing listens on a port.
pub(super) const PORT: u16 = 5432;

/// `sun_path` holds 108 bytes with its final NUL; PostgreSQL adds this name to the directory.
const LONGEST_SOCKET_DIR: usize = 107 - "/.s.PGSQL.5432".len();

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// Everything below it belongs to us.
    pub(super) base: PathBuf,
    /// PostgreSQL's data directory.
    pub(super) data: PathBuf,
    pub(super) socket_dir: PathBuf,
}

/// Paths, and the lock that makes them ours as long as this lives.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) paths: Paths,
    _lock: Flock<File>,
}

impl Layout {
    /// Makes what is missing and takes the lock. The directory must be ours already where `run_as` is `None`.
    pub(super) fn open(data_dir: &Path, run_as: Option<&RunAs>) -> Result<Self, EmbeddedError> {
        match run_as {
            Some(user) => hand_over(data_dir, user)?,
            None => {
                passage(data_dir)?;
                make_dirs(data_dir)?;
                make_private(&data_dir.join("postgres"), None)?;
            }
        }
        let base = fs::canonicalize(data_dir.join("postgres"))
            .map_err(EmbeddedError::io("open directory", &data_dir.join("postgres")))?;
        let lock = lock(&base)?;
        let socket_dir = socket_dir(&base);
        make_private(&socket_dir, run_as)?;
        check_private(&socket_dir, run_as)?;
        Ok(Self {
            paths: Paths::below(&base),
            _lock: lock,
        })
    }
}

impl Paths {
    pub(super) fn below(base: &Path) -> Self {
        Self {
            base: base.to_owned(),
            data: base.join("data"),
            socket_dir: socket_dir(base),
        }
    }

    /// Major version of the server that made the data directory; `None` when there is no directory yet.
    pub(super) fn made_by(&self) -> Result<Option<String>, EmbeddedError> {
        let file = self.data.join("PG_VERSION");
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let occupied = fs::read_dir(&self.data).is_ok_and(|mut entries| entries.next().is_some());
                if occupied {
                    return Err(EmbeddedError::NotADataDirectory { dir: self.data.clone() });
                }
                Ok(None)
            }
            Err(e) => Err(EmbeddedError::io("read", &file)(e)),
        }
    }

    pub(super) fn has_data(&self) -> Result<bool, EmbeddedError> {
        Ok(self.made_by()?.is_some())
    }
}

/// As root: makes `<data_dir>/postgres` and gives it, with all below, to another user. Nothing else changes hands.
pub(super) fn hand_over(data_dir: &Path, to: &RunAs) -> Result<(), EmbeddedError> {
    make_dirs(data_dir)?;
    let base = data_dir.join("postgres");
    make_private(&base, Some(to))?;
    let owner = fs::symlink_metadata(&base)
        .map_err(EmbeddedError::io("open directory", &base))?
        .uid();
    if owner != to.uid { give(&base, to) } else { Ok(()) }
}

/// `chown -R`, never through a symbolic link.
fn give(path: &Path, to: &RunAs) -> Result<(), EmbeddedError> {
    let fail = || EmbeddedError::io("change the owner of", path);
    std::os::unix::fs::lchown(path, Some(to.uid), Some(to.gid)).map_err(fail())?;
    if fs::symlink_metadata(path).map_err(fail())?.is_dir() {
        for entry in fs::read_dir(path).map_err(fail())? {
            give(&entry.map_err(fail())?.path(), to)?;
        }
    }
    Ok(())
}

/// `mkdir -p`; what it makes may be passed by everybody, whatever the umask says.
fn make_dirs(path: &Path) -> Result<(), EmbeddedError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_dirs(parent)?;
    }
    let fail = || EmbeddedError::io("make directory", path);
    fs::create_dir(path).map_err(fail())?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(fail())
}

/// A directory that only its owner may enter.
fn make_private(path: &Path, owner: Option<&RunAs>) -> Result<(), EmbeddedError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => owner.map_or(Ok(()), |owner| give(path, owner)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(EmbeddedError::io("make directory", path)(e)),
    }
}

/// The socket lets everybody in who reaches it, so nobody else may: a directory in /tmp could be somebody's trap.
fn check_private(path: &Path, owner: Option<&RunAs>) -> Result<(), EmbeddedError> {
    let fail = || EmbeddedError::io("use directory", path);
    let meta = fs::symlink_metadata(path).map_err(fail())?;
    let uid = owner.map_or_else(|| nix::unistd::geteuid().as_raw(), |o| o.uid);
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        let why = "expected a directory of this user that nobody else may enter";
        return Err(fail()(std::io::Error::other(why)));
    }
    Ok(())
}

fn socket_dir(base: &Path) -> PathBuf {
    let below = base.join("run");
    if below.as_os_str().len() <= LONGEST_SOCKET_DIR {
        return below;
    }
    // FNV-1a: the name must be the same for every run, and collisions are caught by PostgreSQL's socket lock file.
    let digest = base
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    Path::new("/tmp").join(format!("sonde-{digest:016x}"))
}

/// The first ancestor that this process may not pass.
fn passage(path: &Path) -> Result<(), EmbeddedError> {
    let path = std::path::absolute(path).map_err(EmbeddedError::io("find", path))?;
    let mut ancestors: Vec<&Path> = path.ancestors().collect();
    ancestors.reverse();
    for dir in ancestors {
        match nix::unistd::access(dir, AccessFlags::X_OK) {
            Ok(()) => {}
            Err(nix::Error::EACCES) => {
                let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
                return Err(EmbeddedError::NoPassage {
                    user: user.map_or_else(|| nix::unistd::geteuid().to_string(), |u| u.name),
                    dir: dir.to_owned(),
                    to: path.clone(),
                });
            }
            // Does not exist yet.
            Err(_) => break,
        }
    }
    Ok(())
}

fn lock(base: &Path) -> Result<Flock<File>, EmbeddedError> {
    let path = base.join("lock");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = file.map_err(EmbeddedError::io("open", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let _ = lock.set_len(0);
            let _ = write!(lock, "{}", std::process::id());
            Ok(lock)
        }
        Err((mut file, nix::Error::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            Err(EmbeddedError::InUse {
                dir: base.to_owned(),
                pid,
            })
        }
        Err((_, e)) => Err(EmbeddedError::io("lock", &path)(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_directory_gets_a_short_socket_path() {
        let near = Paths::below(Path::new("/var/lib/sonde/aggregator/postgres"));
        assert_eq!(near.socket_dir, Path::new("/var/lib/sonde/aggregator/postgres/run"));
        let deep = Paths::below(Path::new(&format!("/{}/postgres", "deep/".repeat(30))));
        assert!(deep.socket_dir.as_os_str().len() <= LONGEST_SOCKET_DIR, "{deep:?}");
        assert!(deep.socket_dir.starts_with("/tmp"), "{deep:?}");
    }

    #[test]
    fn two_cannot_hold_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Layout::open(dir.path(), None).unwrap();
        let error = Layout::open(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        drop(first);
        Layout::open(dir.path(), None).unwrap();
    }

    #[test]
    fn a_directory_that_is_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("postgres/data")).unwrap();
        fs::set_permissions(dir.path().join("postgres"), Permissions::from_mode(0o700)).unwrap();
        fs::write(dir.path().join("postgres/data/photos"), "").unwrap();
        let layout = Layout::open(dir.path(), None).unwrap();
        assert!(matches!(
            layout.paths.has_data(),
            Err(EmbeddedError::NotADataDirectory { .. })
        ));
    }
}
