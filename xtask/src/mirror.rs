//! The Debian mirror that this machine's apt uses.

use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a mirror may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first mirror of this machine's release, and the release's name. Third parties' repositories have other suites.
pub(crate) fn of_this_machine() -> Option<(String, String)> {
    let suite = code_name(&fs::read_to_string("/etc/os-release").ok()?)?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        more.sort();
        files.extend(more);
    }
    let mirror = files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        match file.extension()?.to_str()? {
            "sources" => in_stanzas(&text, &suite),
            "list" => in_lines(&text, &suite),
            _ => None,
        }
    })?;
    Some((mirror, suite))
}

/// Whether somebody listens there. Behind a proxy nobody can tell without asking it, so there it counts as answering.
pub(crate) fn answers(mirror: &str) -> bool {
    let names = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
    #[expect(clippy::disallowed_methods, reason = "the proxy of the programs that fetch is named in the environment")]
    let proxy = names.iter().any(|name| std::env::var_os(name).is_some());
    (proxy && host_and_port(mirror).is_some()) || listens(mirror)
}

fn listens(mirror: &str) -> bool {
    if let Some(path) = mirror.strip_prefix("file:") {
        return Path::new(path).is_dir();
    }
    let Some(address) = host_and_port(mirror) else { return false };
    let found = address.to_socket_addrs();
    found.is_ok_and(|mut found| found.any(|to| TcpStream::connect_timeout(&to, PATIENCE).is_ok()))
}

fn host_and_port(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Some(if has_port { host.to_owned() } else { format!("{host}:{port}") })
}

fn code_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim().trim_matches('"').to_owned()).filter(|name| !name.is_empty())
}

/// What debootstrap can fetch from.
fn usable(uri: &str) -> bool {
    ["http://", "https://", "file:"].iter().any(|scheme| uri.starts_with(scheme))
}

/// From `deb [OPTIONS] URI SUITE COMPONENT...` lines.
fn in_lines(text: &str, suite: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        let mut words = rest.split('#').next()?.split_whitespace();
        let (uri, of) = (words.next()?, words.next()?);
        (of == suite && usable(uri) && words.any(|component| component == "main")).then(|| uri.to_owned())
    })
}

/// From stanzas of `Types:`, `URIs:`, `Suites:`, `Components:`.
fn in_stanzas(text: &str, suite: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let words = |key: &str| -> Vec<&str> {
            let of_key = |line: &'_ str| {
                line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(key)) && !line.starts_with('#')
            };
            let lines = stanza.lines().skip_while(|line| !of_key(line));
            // A value goes on in lines that begin with a space.
            let mut value = Vec::new();
            for (number, line) in lines.enumerate() {
                match (number, line.split_once(':')) {
                    (0, Some((_, first))) => value.extend(first.split_whitespace()),
                    _ if line.starts_with([' ', '\t']) => value.extend(line.split_whitespace()),
                    _ if line.starts_with('#') => {}
                    _ => break,
                }
            }
            value
        };
        let enabled = !words("Enabled").first().is_some_and(|word| ["no", "false", "0"].contains(word));
        let fits = words("Types").contains(&"deb")
            && words("Suites").contains(&suite)
            && words("Components").contains(&"main");
        (enabled && fits).then(|| words("URIs").into_iter().find(|uri| usable(uri)).map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_release_s_own_mirror_is_found_in_both_formats() {
        let lines = "# a comment\ndeb-src http://src/debian bookworm main\ndeb https://other/apt bookworm stable\n\
                     deb cdrom:[Debian]/ bookworm main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian/ bookworm main contrib # here\n";
        assert_eq!(in_lines(lines, "bookworm").unwrap(), "http://mirror/debian/");
        assert_eq!(in_lines(lines, "trixie"), None);

        let stanzas = "Types: deb\nURIs: https://node/x\nSuites: nodistro\nComponents: main\n\n\
                       Types: deb\nEnabled: no\nURIs: http://off/debian\nSuites: bookworm\nComponents: main\n\n\
                       Types: deb\n# http://snapshot/x\nURIs: mirror+file:/l\n http://mirror/debian\nSuites: bookworm\n\
                       # more\n bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n";
        assert_eq!(in_stanzas(stanzas, "bookworm").unwrap(), "http://mirror/debian");
        assert_eq!(in_stanzas(stanzas, "bookworm-updates").unwrap(), "http://mirror/debian");
        assert_eq!(in_stanzas(stanzas, "bookworm-security"), None);
        assert_eq!(code_name("ID=debian\nVERSION_CODENAME=\"bookworm\"\n").unwrap(), "bookworm");
    }

    #[test]
    fn addresses_of_mirrors() {
        assert_eq!(host_and_port("http://deb.debian.org/debian").unwrap(), "deb.debian.org:80");
        assert_eq!(host_and_port("https://u:p@mirror/debian").unwrap(), "mirror:443");
        assert_eq!(host_and_port("http://127.0.0.1:3142/debian").unwrap(), "127.0.0.1:3142");
        assert_eq!(host_and_port("file:/srv"), None);
        assert!(!listens("http://127.0.0.1:1/debian"));
        assert!(listens("file:/") && !listens("file:/no/such/place") && !answers("gopher://x"));
    }
}
