//! Small archives made and listed by hand, so that the project's own tar code is not tested with itself.

use std::collections::BTreeMap;

use super::Failure;

const BLOCK: usize = 512;

/// Makes an archive in ustar, with PAX records where they are asked for.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    uid: u32,
    gid: u32,
    mtime: u64,
    records: Vec<(String, Vec<u8>)>,
}

impl Archive {
    /// An empty archive. Members are owned by 0:0 and were modified at 1,000,000,000.
    #[must_use]
    pub fn new() -> Self {
        Self { mtime: 1_000_000_000, ..Self::default() }
    }

    /// Owner and group of the members that follow.
    #[must_use]
    pub fn owned_by(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Gives the next member an extended attribute.
    #[must_use]
    pub fn xattr(mut self, key: &str, value: &[u8]) -> Self {
        self.records.push((format!("SCHILY.xattr.{key}"), value.to_vec()));
        self
    }

    /// A file, 0644.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.member(name, b'0', 0o644, content, "")
    }

    /// A directory.
    #[must_use]
    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.member(name, b'5', mode, b"", "")
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.member(name, b'2', 0o777, b"", target)
    }

    /// A hard link to an earlier member or to a file of a lower layer.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.member(name, b'1', 0o644, b"", target)
    }

    /// A whiteout of `name` in `directory` (empty for the root).
    #[must_use]
    pub fn whiteout(self, directory: &str, name: &str) -> Self {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        self.member(&format!("{prefix}.wh.{name}"), b'0', 0, b"", "")
    }

    /// Marks a directory opaque.
    #[must_use]
    pub fn opaque(self, directory: &str) -> Self {
        self.member(&format!("{directory}/.wh..wh..opq"), b'0', 0, b"", "")
    }

    /// Any member: name, type flag, mode, content, link target. Names longer than 100 bytes get a PAX record.
    #[must_use]
    pub fn member(mut self, name: &str, flag: u8, mode: u32, content: &[u8], target: &str) -> Self {
        let mut records = std::mem::take(&mut self.records);
        if name.len() > 100 {
            records.push(("path".to_owned(), name.as_bytes().to_vec()));
        }
        if !records.is_empty() {
            let mut body = Vec::new();
            for (key, value) in &records {
                body.extend(record(key, value));
            }
            self.header("PaxHeaders.0/x", b'x', 0o644, body.len(), "");
            self.content(&body);
        }
        let short: String = name.chars().take(100).collect();
        self.header(&short, flag, mode, content.len(), target);
        self.content(content);
        self
    }

    fn header(&mut self, name: &str, flag: u8, mode: u32, size: usize, target: &str) {
        let mut block = [0; BLOCK];
        put(&mut block, 0, name.as_bytes());
        put(&mut block, 100, format!("{mode:07o}\0").as_bytes());
        put(&mut block, 108, format!("{:07o}\0", self.uid).as_bytes());
        put(&mut block, 116, format!("{:07o}\0", self.gid).as_bytes());
        put(&mut block, 124, format!("{size:011o}\0").as_bytes());
        put(&mut block, 136, format!("{:011o}\0", self.mtime).as_bytes());
        put(&mut block, 148, b"        ");
        put(&mut block, 156, &[flag]);
        put(&mut block, 157, target.as_bytes());
        put(&mut block, 257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
    }

    fn content(&mut self, content: &[u8]) {
        self.bytes.extend_from_slice(content);
        let padding = content.len().next_multiple_of(BLOCK) - content.len();
        self.bytes.extend(std::iter::repeat_n(0, padding));
    }

    /// The archive with its two end blocks.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend(std::iter::repeat_n(0, 2 * BLOCK));
        self.bytes
    }
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    for (slot, byte) in block.iter_mut().skip(at).zip(bytes) {
        *slot = *byte;
    }
}

/// A PAX record states its own length, its digits included.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut out = format!("{length} {key}=").into_bytes();
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}

/// What the list of an archive says about one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name, PAX records taken into account.
    pub name: Vec<u8>,
    /// The type flag.
    pub flag: u8,
    /// Permission bits.
    pub mode: u64,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of content.
    pub size: u64,
    /// Link target.
    pub target: Vec<u8>,
    /// PAX records.
    pub records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Lists the members of a ustar or PAX archive.
pub(super) fn members(bytes: &[u8]) -> Result<Vec<Member>, Failure> {
    let mut found = Vec::new();
    let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut at = 0;
    while let Some(block) = bytes.get(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(found);
        }
        let mut size = number(&block[124..136])?;
        let flag = block[156];
        if flag != b'x'
            && let Some(stated) = records.get(&b"size"[..])
        {
            size = decimal(stated)?;
        }
        let length = usize::try_from(size)?;
        let content = bytes.get(at..at + length).ok_or_else(|| Failure::new("the archive ends within a member"))?;
        at += length.next_multiple_of(BLOCK);
        if flag == b'x' {
            records = pax(content)?;
            continue;
        }
        let mut name = text(&block[345..500]).to_vec();
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(text(&block[0..100]));
        let own = std::mem::take(&mut records);
        let stated =
            |key: &str, field: &[u8]| own.get(key.as_bytes()).map_or_else(|| number(field), |value| decimal(value));
        found.push(Member {
            name: own.get(&b"path"[..]).cloned().unwrap_or(name),
            flag,
            mode: number(&block[100..108])?,
            uid: stated("uid", &block[108..116])?,
            gid: stated("gid", &block[116..124])?,
            size,
            target: own.get(&b"linkpath"[..]).cloned().unwrap_or_else(|| text(&block[157..257]).to_vec()),
            records: own,
        });
    }
    Err(Failure::new("the archive has no end blocks"))
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> Result<u64, Failure> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        return Ok(field.iter().skip(1).fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let digits = String::from_utf8_lossy(text(field)).trim().to_owned();
    if digits.is_empty() { Ok(0) } else { Ok(u64::from_str_radix(&digits, 8)?) }
}

fn decimal(value: &[u8]) -> Result<u64, Failure> {
    Ok(std::str::from_utf8(value)?.parse()?)
}

fn pax(mut content: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failure> {
    let broken = || Failure::new("a PAX record does not parse");
    let mut found = BTreeMap::new();
    while !content.is_empty() {
        let space = content.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
        let length = usize::try_from(decimal(&content[..space])?)?;
        let record = content.get(space + 1..length).ok_or_else(broken)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        let value = record[equals + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
        found.insert(record[..equals].to_vec(), value.to_vec());
        content = &content[length..];
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_listed() {
        let long = "d/".repeat(60) + "name";
        let bytes = Archive::new()
            .owned_by(7, 8)
            .dir("d", 0o755)
            .xattr("user.k", b"line\nline")
            .file(&long, b"content")
            .symlink("s", "d")
            .whiteout("d", "gone")
            .finish();
        let listed = members(&bytes).unwrap();
        let names: Vec<_> = listed.iter().map(|member| String::from_utf8_lossy(&member.name).into_owned()).collect();
        assert_eq!(names, ["d", &long, "s", "d/.wh.gone"]);
        assert_eq!(listed[1].records[&b"SCHILY.xattr.user.k"[..]], b"line\nline");
        assert_eq!((listed[1].uid, listed[1].gid, listed[1].size), (7, 8, 7));
        assert_eq!(listed[2].target, b"d");
    }

    #[test]
    fn a_record_that_grows_by_its_own_length_is_right() {
        for length in 0..1200 {
            let made = record("k", &vec![b'v'; length]);
            let digits: String =
                made.iter().map_while(|byte| byte.is_ascii_digit().then_some(char::from(*byte))).collect();
            assert_eq!(digits.parse(), Ok(made.len()));
        }
    }
}
