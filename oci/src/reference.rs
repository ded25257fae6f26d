//! Where an image in files is: `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`, `docker-archive:FILE[:NAME]`, or a bare path.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The forms an image in files can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// An OCI image layout directory (image-spec, image-layout.md).
    Oci,
    /// A tar of an OCI image layout, compressed or not.
    OciArchive,
    /// What `docker save` writes, compressed or not.
    DockerArchive,
}

impl Transport {
    /// The word before the colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        }
    }
}

/// The place of an image in files, in the words of containers-transports(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// What is at the path; `None` leaves it to the files.
    pub transport: Option<Transport>,
    /// The directory or archive.
    pub path: PathBuf,
    /// The image's name in it: an OCI reference name, or a Docker repository tag.
    pub name: Option<String>,
}

impl Reference {
    /// Parses `TRANSPORT:PATH[:NAME]`, or a path. A path that exists is taken whole, colons included.
    ///
    /// # Errors
    /// [`Error::Reference`] for an empty path.
    pub fn parse(text: &str) -> Result<Self> {
        let known = [Transport::Oci, Transport::OciArchive, Transport::DockerArchive];
        let prefixed = known
            .into_iter()
            .find_map(|t| text.strip_prefix(t.name()).and_then(|rest| rest.strip_prefix(':')).map(|rest| (t, rest)));
        let (transport, rest) = match prefixed {
            Some((transport, rest)) => (Some(transport), rest),
            None => (None, text),
        };
        let (path, name) = match rest.split_once(':') {
            // A directory or file with a colon in its name wins over a name behind it.
            Some((path, name)) if fs::symlink_metadata(rest).is_err() => (path, Some(name)),
            _ => (rest, None),
        };
        if path.is_empty() {
            return Err(Error::Reference { reference: text.to_owned(), problem: "the path is empty".to_owned() });
        }
        if name.is_some_and(str::is_empty) {
            return Err(Error::Reference { reference: text.to_owned(), problem: "the name is empty".to_owned() });
        }
        Ok(Self { transport, path: Path::new(path).to_path_buf(), name: name.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_transports() {
        let parse = |text| Reference::parse(text).unwrap();
        let reference = |transport, path: &str, name: Option<&str>| Reference {
            transport,
            path: path.into(),
            name: name.map(str::to_owned),
        };
        assert_eq!(parse("oci:/a/b:tag"), reference(Some(Transport::Oci), "/a/b", Some("tag")));
        assert_eq!(parse("oci:b"), reference(Some(Transport::Oci), "b", None));
        assert_eq!(
            parse("docker-archive:x.tar:docker.io/library/a:1"),
            reference(Some(Transport::DockerArchive), "x.tar", Some("docker.io/library/a:1"))
        );
        assert_eq!(parse("oci-archive:x.tar"), reference(Some(Transport::OciArchive), "x.tar", None));
        assert_eq!(parse("some/dir"), reference(None, "some/dir", None));
        assert!(Reference::parse("").is_err());
        assert!(Reference::parse("oci:").is_err());
        assert!(Reference::parse("oci:x:").is_err());
    }
}
