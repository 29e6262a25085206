//! PostgreSQL refuses to run as root, and the aggregator needs no rights either: started by root, it becomes another user.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User};

use super::EmbeddedError;

/// Who to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

const CANDIDATES: [&str; 3] = ["sonde", "postgres", "nobody"];

/// `wanted` (`storage.run_as`), or where that is empty the first of the usual ones that exists.
pub fn choose(wanted: &str) -> Result<RunAs, EmbeddedError> {
    let find = |name: &str| User::from_name(name).ok().flatten();
    let user = if wanted.is_empty() {
        CANDIDATES
            .iter()
            .find_map(|name| find(name))
            .ok_or_else(|| EmbeddedError::RunAs(format!("none of the users {} exists", CANDIDATES.join(", "))))?
    } else {
        find(wanted).ok_or_else(|| EmbeddedError::RunAs(format!("there is no user `{wanted}`")))?
    };
    if user.uid.is_root() {
        return Err(EmbeddedError::RunAs(format!(
            "`{}` is root, expected an unprivileged user",
            user.name
        )));
    }
    Ok(RunAs {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    })
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Gives up root for good, in every thread: real, effective and saved ids, groups, and with them all capabilities.
pub fn become_user(user: &RunAs) -> Result<(), EmbeddedError> {
    let fail = |e: nix::Error| EmbeddedError::RunAs(format!("cannot become `{}`: {e}", user.name));
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let name = CString::new(user.name.as_str()).expect("a user name has no NUL");
    // The kernel forgets the parent death signal when credentials change; whoever started us may count on it.
    let death_signal = nix::sys::prctl::get_pdeathsig().map_err(fail)?;
    nix::unistd::initgroups(&name, gid).map_err(fail)?;
    nix::unistd::setresgid(gid, gid, gid).map_err(fail)?;
    nix::unistd::setresuid(uid, uid, uid).map_err(fail)?;
    nix::sys::prctl::set_pdeathsig(death_signal).map_err(fail)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_strangers_are_refused() {
        let error = choose("root").unwrap_err().to_string();
        assert_eq!(error, "storage.run_as: `root` is root, expected an unprivileged user");
        let error = choose("no-such-user").unwrap_err().to_string();
        assert_eq!(error, "storage.run_as: there is no user `no-such-user`");
    }
}
