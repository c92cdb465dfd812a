//! The settings of a catalog in etcd.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use merlin_etcd::{Backend, Config, Layout, MaxRemoval, Tls, User};

use crate::cli::{Settings, StoreBackend};

/// Where the catalog is kept, if that is etcd.
pub(crate) fn resolve(given: &Settings) -> Result<Option<Config>> {
    let endpoints = given.store_endpoints.as_deref().unwrap_or_default();
    let endpoints: Vec<_> = endpoints.iter().map(|url| url.trim()).collect();
    let backend = match given.store_backend {
        None if endpoints.is_empty() => return only_raft(given),
        Some(StoreBackend::Raft) => {
            ensure!(
                endpoints.is_empty(),
                "--store-endpoints: the raft store has none; remove it or choose etcd3"
            );
            return only_raft(given);
        }
        Some(_) if endpoints.is_empty() => {
            bail!("--store-endpoints: say where etcd is, such as http://10.0.0.1:2379")
        }
        None | Some(StoreBackend::Auto) => None,
        Some(StoreBackend::Etcd3) => Some(Backend::Etcd3),
        Some(StoreBackend::Etcd2) => Some(Backend::Etcd2),
    };
    let prefix = given.store_prefix.as_deref();
    let layout = Layout::new(prefix.unwrap_or(Layout::DEFAULT_PREFIX));
    let layout = layout.map_err(|invalid| anyhow::anyhow!("--store-prefix: {}", invalid.reason))?;
    let tls = tls(given)?;
    let is_tls = tls.ca.is_some() || tls.identity.is_some();
    let endpoints: Result<Vec<_>> = endpoints.iter().map(|url| endpoint(url, is_tls)).collect();
    Ok(Some(Config {
        backend,
        endpoints: endpoints?,
        layout,
        tls,
        user: user(given)?,
        keep: None,
        max_removal: max_removal(given)?,
    }))
}

/// Options that mean nothing without etcd are mistakes.
fn only_raft(given: &Settings) -> Result<Option<Config>> {
    for (flag, is_given) in [
        ("--store-prefix", given.store_prefix.is_some()),
        ("--store-ca", given.store_ca.is_some()),
        ("--store-cert", given.store_cert.is_some()),
        ("--store-key", given.store_key.is_some()),
        ("--store-user", given.store_user.is_some()),
        ("--store-password-file", given.store_password_file.is_some()),
        ("--max-removal", given.max_removal.is_some()),
    ] {
        ensure!(
            !is_given,
            "{flag}: only goes with etcd; remove it or give --store-endpoints"
        );
    }
    Ok(None)
}

/// A URL; without a scheme it is https where there is something to do TLS with.
fn endpoint(text: &str, is_tls: bool) -> Result<String> {
    let url = match text.split_once("://") {
        Some(("http", _)) => {
            ensure!(
                !is_tls,
                "--store-endpoints: {text} is plaintext, but --store-ca or --store-cert is given; \
                 write https://"
            );
            text.to_owned()
        }
        Some(("https", _)) => {
            ensure!(
                is_tls,
                "--store-endpoints: {text} needs --store-ca, the authority that signed etcd's \
                 certificate"
            );
            text.to_owned()
        }
        Some(_) => bail!("--store-endpoints: {text} is not an http:// or https:// URL"),
        None if is_tls => format!("https://{text}"),
        None => format!("http://{text}"),
    };
    let url = url.trim_end_matches('/');
    let authority = url.rsplit('/').next().unwrap_or_default();
    ensure!(
        url.matches('/').count() == 2 && authority.rsplit_once(':').is_some_and(is_host_and_port),
        "--store-endpoints: {text} is not a URL such as http://10.0.0.1:2379"
    );
    Ok(url.to_owned())
}

fn is_host_and_port((host, port): (&str, &str)) -> bool {
    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Every file is read once here, so that a mistake is found now and not when etcd answers.
fn tls(given: &Settings) -> Result<Tls> {
    let readable = |flag: &str, path: &Path| {
        let read = std::fs::read(path);
        read.with_context(|| format!("{flag}: reading {}", path.display()))
            .map(drop)
    };
    if let Some(path) = &given.store_ca {
        readable("--store-ca", path)?;
    }
    let identity = match (&given.store_cert, &given.store_key) {
        (Some(certificate), Some(key)) => {
            readable("--store-cert", certificate)?;
            readable("--store-key", key)?;
            Some((certificate.clone(), key.clone()))
        }
        (None, None) => None,
        (Some(_), None) => bail!("--store-cert: needs --store-key"),
        (None, Some(_)) => bail!("--store-key: needs --store-cert"),
    };
    Ok(Tls {
        ca: given.store_ca.clone(),
        identity,
    })
}

fn max_removal(given: &Settings) -> Result<MaxRemoval> {
    match given.max_removal {
        None => Ok(MaxRemoval::default()),
        Some(percent) => MaxRemoval::new(percent)
            .with_context(|| format!("--max-removal: {percent} is out of range: 0 to 100")),
    }
}

fn user(given: &Settings) -> Result<Option<User>> {
    match (&given.store_user, &given.store_password_file) {
        (Some(name), Some(path)) => {
            let password = std::fs::read_to_string(path)
                .with_context(|| format!("--store-password-file: reading {}", path.display()))?;
            Ok(Some(User {
                name: name.clone(),
                password: password.trim_end_matches(['\r', '\n']).to_owned(),
            }))
        }
        (None, None) => Ok(None),
        (Some(_), None) => bail!("--store-user: needs --store-password-file"),
        (None, Some(_)) => bail!("--store-password-file: needs --store-user"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(urls: &[&str]) -> Settings {
        Settings {
            store_endpoints: Some(urls.iter().map(|&url| url.to_owned()).collect()),
            ..Settings::default()
        }
    }

    #[test]
    fn endpoints_alone_mean_etcd_of_either_kind() {
        assert!(resolve(&Settings::default()).unwrap().is_none());
        let urls = ["http://a:2379", "b:2379", "http://[::1]:2379/"];
        let config = resolve(&endpoints(&urls)).unwrap().unwrap();
        assert_eq!(config.backend, None);
        assert_eq!(config.layout.prefix(), "/merlin");
        let expected = ["http://a:2379", "http://b:2379", "http://[::1]:2379"];
        assert_eq!(config.endpoints, expected);
        let etcd2 = Settings {
            store_backend: Some(StoreBackend::Etcd2),
            store_prefix: Some("other".to_owned()),
            ..endpoints(&["a:2379"])
        };
        let config = resolve(&etcd2).unwrap().unwrap();
        assert_eq!(config.backend, Some(Backend::Etcd2));
        assert_eq!(config.layout.prefix(), "/other");
    }

    #[test]
    fn mistakes_are_told_by_their_flag() {
        let given = || endpoints(&["http://a:2379"]);
        let missing = || Some("/nonexistent".into());
        let cases = [
            ("--store-endpoints: ftp", endpoints(&["ftp://a:2379"])),
            ("--store-endpoints: http://a ", endpoints(&["http://a"])),
            ("--store-endpoints: http://a:0", endpoints(&["http://a:0"])),
            (
                "--store-endpoints: http://a:1/b",
                endpoints(&["http://a:1/b"]),
            ),
            (
                "--store-endpoints: https://a:1",
                endpoints(&["https://a:1"]),
            ),
            (
                "--store-endpoints: say",
                Settings {
                    store_backend: Some(StoreBackend::Etcd3),
                    ..Settings::default()
                },
            ),
            (
                "--store-endpoints: the raft",
                Settings {
                    store_backend: Some(StoreBackend::Raft),
                    ..given()
                },
            ),
            (
                "--store-prefix: ",
                Settings {
                    store_prefix: Some("//".into()),
                    ..given()
                },
            ),
            (
                "--store-prefix: only",
                Settings {
                    store_prefix: Some("/merlin".into()),
                    ..Settings::default()
                },
            ),
            (
                "--store-ca: reading",
                Settings {
                    store_ca: missing(),
                    ..given()
                },
            ),
            (
                "--store-cert: needs",
                Settings {
                    store_cert: missing(),
                    ..given()
                },
            ),
            (
                "--store-key: needs",
                Settings {
                    store_key: missing(),
                    ..given()
                },
            ),
            (
                "--max-removal: 101",
                Settings {
                    max_removal: Some(101),
                    ..given()
                },
            ),
            (
                "--max-removal: only",
                Settings {
                    max_removal: Some(80),
                    ..Settings::default()
                },
            ),
            (
                "--store-user: needs",
                Settings {
                    store_user: Some("me".into()),
                    ..given()
                },
            ),
            (
                "--store-password-file: reading",
                Settings {
                    store_user: Some("me".into()),
                    store_password_file: missing(),
                    ..given()
                },
            ),
        ];
        for (expected, settings) in cases {
            let error = resolve(&settings).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
