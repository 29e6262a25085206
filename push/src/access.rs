//! From the configuration to a server: the keys that everything has that sends somewhere.

use std::path::Path;

use sonde_common::config::Access;

use crate::{Auth, Http, HttpError, Secret};

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: `{value}`: {what}")]
pub struct BadSetting {
    pub key: String,
    pub value: String,
    pub what: String,
}

/// The server of a section, such as `sinks.loki`. A URL without a path gets `path`. Nothing is connected.
pub fn server(section: &str, access: &Access<'_>, path: &str) -> Result<Http, BadSetting> {
    let ca: Option<&Path> = Some(access.ca_file).filter(|path| !path.as_os_str().is_empty());
    let http = Http::new(access.url, path, ca, auth(access)).and_then(|http| match access.tenant {
        "" => Ok(http),
        tenant => http.header("x-scope-orgid", tenant),
    });
    http.map_err(|error| bad(section, access, &error))
}

fn auth(access: &Access<'_>) -> Auth {
    let secret = |file: &Path, variable: &str| {
        if variable.is_empty() {
            Secret::File(file.to_owned())
        } else {
            Secret::Variable(variable.to_owned())
        }
    };
    if !access.username.is_empty() {
        return Auth::Basic {
            user: access.username.to_owned(),
            password: secret(access.password_file, access.password_env),
        };
    }
    let (file, variable) = (access.bearer_token_file, access.bearer_token_env);
    if !variable.is_empty() || !file.as_os_str().is_empty() {
        return Auth::Bearer(secret(file, variable));
    }
    Auth::None
}

fn bad(section: &str, access: &Access<'_>, error: &HttpError) -> BadSetting {
    let (key, value) = match error {
        HttpError::Url(_) => ("url", without_credentials(access.url)),
        HttpError::Ca { .. } | HttpError::NoRoots(_) => ("ca_file", access.ca_file.display().to_string()),
        HttpError::NoVariable(name) if *name == access.password_env => ("password_env", name.clone()),
        HttpError::NoVariable(name) => ("bearer_token_env", name.clone()),
        HttpError::Header(value) => ("tenant", value.clone()),
    };
    let what = match error {
        HttpError::NoVariable(_) => "expected a variable of the environment, and there is none of that name".to_owned(),
        error => error.to_string(),
    };
    BadSetting {
        key: format!("{section}.{key}"),
        value,
        what,
    }
}

/// A URL that is refused for what must not be shown.
fn without_credentials(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("...@{host}"),
        None => url.to_owned(),
    }
}
