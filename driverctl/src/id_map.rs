//! Mappings of ids, from the command line.

use anyhow::{Context, Result, bail};
use graph_archive::{IdMappings, IdRange};
use graph_core::subid::{SubIdKind, SubIds, both_sides, check_overlaps, parse_ranges};
use graph_store::AutoUserNs;

use crate::cli::IdMap;

/// The mappings that the flags ask for; `None` when they ask for nothing, so that the parent's apply.
pub(crate) fn parse(words: &IdMap) -> Result<Option<IdMappings>> {
    // One name counts for both files.
    let user = words.subuidmap.as_deref().or(words.subgidmap.as_deref());
    let group = words.subgidmap.as_deref().or(words.subuidmap.as_deref());
    let uids = side(SubIdKind::User, user, words.uidmap.as_deref(), words.hostuidmap)?;
    let gids = side(SubIdKind::Group, group, words.gidmap.as_deref(), words.hostgidmap)?;
    let asked = words.hostuidmap || words.hostgidmap || !uids.is_empty() || !gids.is_empty();
    let mappings =
        if words.hostuidmap || words.hostgidmap { IdMappings { uids, gids } } else { both_sides(uids, gids) };
    check_overlaps(&mappings.uids)?;
    check_overlaps(&mappings.gids)?;
    Ok(asked.then_some(mappings))
}

/// `auto`, or `auto:` with `size=N`, `uidmapping=C:H:S`, `gidmapping=C:H:S`, separated by commas, as podman takes it.
pub(crate) fn automatic(text: &str) -> Result<AutoUserNs> {
    let mut wish = AutoUserNs::default();
    let rest = match text.strip_prefix("auto") {
        Some("") => return Ok(wish),
        Some(rest) => rest.strip_prefix(':'),
        None => None,
    };
    let Some(rest) = rest else { bail!("{text:?} is not auto, nor auto:size=N") };
    for option in rest.split(',') {
        match option.split_once('=') {
            Some(("size", size)) => wish.size = size.parse().with_context(|| format!("size {size:?}"))?,
            Some(("uidmapping", map)) => wish.additional.uids.extend(parse_ranges(&[map], "uid")?),
            Some(("gidmapping", map)) => wish.additional.gids.extend(parse_ranges(&[map], "gid")?),
            _ => bail!("unknown option {option:?}: size, uidmapping and gidmapping are known"),
        }
    }
    Ok(wish)
}

fn side(kind: SubIdKind, name: Option<&str>, map: Option<&str>, host: bool) -> Result<Vec<IdRange>> {
    let (short, long) = match kind {
        SubIdKind::User => ("uid", "UID"),
        SubIdKind::Group => ("gid", "GID"),
    };
    let explicit = parse_ranges(map.as_slice(), short)?;
    if host && (!explicit.is_empty() || name.is_some()) {
        bail!("host {short} map specified along with {long} mapping");
    }
    let mut ranges = match name {
        Some(name) => SubIds::read(kind, kind.file())?.mapping(name, None)?,
        None => Vec::new(),
    };
    ranges.extend(explicit);
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(uidmap: &str, gidmap: &str, host: bool) -> IdMap {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        IdMap { uidmap: some(uidmap), gidmap: some(gidmap), hostuidmap: host, ..IdMap::default() }
    }

    #[test]
    fn mappings_from_flags() {
        let range = |container_id, host_id, size| IdRange { container_id, host_id, size };
        assert_eq!(parse(&words("", "", false)).unwrap(), None);
        assert_eq!(parse(&words("", "", true)).unwrap(), Some(IdMappings::default()));
        let both = vec![range(0, 100_000, 65_536), range(70_000, 1, 1)];
        assert_eq!(
            parse(&words("0:100000:65536:70000:1:1", "", false)).unwrap(),
            Some(IdMappings { uids: both.clone(), gids: both })
        );
        for (words, text) in [
            (words("0:1", "", false), "uid setting is malformed expected [\"uint32:uint32:uint32\"]: [\"0:1\"]"),
            (words("0:5:1", "", true), "host uid map specified along with UID mapping"),
            (words("0:5:10:5:50:10", "", false), "overlap"),
        ] {
            let error = parse(&words).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
