//! A case: its tensors, what each is for, and how close the outputs must come.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use include_dir::{Dir, include_dir};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

static CARRIED: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/tests/fixtures");

/// One fixture.
#[derive(Debug, Clone)]
pub struct Case {
    /// The folder that it lies in: whose definition it samples.
    pub family: String,
    /// Its file's name, without the ending.
    pub name: String,
    /// The operation, as its source calls it.
    pub op: String,
    pub(super) params: Value,
    pub(super) roles: Roles,
    pub(super) tolerance: Tolerance,
    pub(super) scale: Option<f32>,
    tensors: BTreeMap<String, Array>,
}

/// What each tensor is for, by name.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Roles {
    pub inputs: Vec<String>,
    pub expected: Vec<String>,
    #[serde(default)]
    pub intermediate: Vec<String>,
}

/// `|x - expected| <= rtol * |expected| + atol`, with `atol` as it is or per `max |expected|`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Tolerance {
    pub rtol: f64,
    #[serde(default)]
    pub atol: f64,
    #[serde(default)]
    pub atol_of_max: f64,
}

/// A tensor on the host, row-major.
#[derive(Debug, Clone)]
pub(super) struct Array {
    /// How the file stores it.
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub values: Values,
}

/// The elements of an [`Array`]. Floats of any width are held as f32, integers as i64.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Real(Vec<f32>),
    Integer(Vec<i64>),
    Boolean(Vec<bool>),
}

impl Values {
    /// How many there are.
    pub fn len(&self) -> u64 {
        match self {
            Self::Real(values) => values.len() as u64,
            Self::Integer(values) => values.len() as u64,
            Self::Boolean(values) => values.len() as u64,
        }
    }
}

impl Array {
    /// The elements, where they are floats.
    pub fn reals(&self) -> Result<&[f32], String> {
        match &self.values {
            Values::Real(values) => Ok(values),
            _ => Err(format!("{} where floats are expected", self.dtype)),
        }
    }

    /// The elements, where they are integers.
    pub fn integers(&self) -> Result<&[i64], String> {
        match &self.values {
            Values::Integer(values) => Ok(values),
            _ => Err(format!("{} where integers are expected", self.dtype)),
        }
    }

    /// The elements as lengths of sequences.
    pub fn lengths(&self) -> Result<Vec<u32>, String> {
        self.integers()?
            .iter()
            .map(|&n| u32::try_from(n).map_err(|_| format!("{n} is no length")))
            .collect()
    }
}

impl Case {
    /// Reads a case from the bytes of its file.
    ///
    /// # Errors
    /// [`Error::File`], named `<family>/<name>`, when it is not a case.
    pub fn parse(family: &str, name: &str, bytes: &[u8]) -> Result<Self> {
        Self::read(family, name, bytes)
            .map_err(|message| Error::file(format!("{family}/{name}.safetensors"), message))
    }

    fn read(family: &str, name: &str, bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let texts = header
            .metadata()
            .as_ref()
            .ok_or("its header has no __metadata__, so it is no case")?;
        let tensors = file
            .iter()
            .map(|(name, view)| {
                let values = values(view.dtype(), view.data())
                    .ok_or_else(|| format!("{name}: {} is not read in cases", view.dtype()))?;
                let array = Array {
                    dtype: view.dtype(),
                    shape: view.shape().iter().map(|&len| len as u64).collect(),
                    values,
                };
                Ok((name.to_owned(), array))
            })
            .collect::<Result<BTreeMap<_, _>, String>>()?;
        let roles: Roles = json(texts, "roles")?;
        let named = [&roles.inputs, &roles.expected, &roles.intermediate];
        if let Some(missing) = named
            .into_iter()
            .flatten()
            .find(|name| !tensors.contains_key(*name))
        {
            return Err(format!("roles name {missing}, and there is no such tensor"));
        }
        Ok(Self {
            family: family.to_owned(),
            name: name.to_owned(),
            op: texts.get("op").cloned().unwrap_or_default(),
            params: json(texts, "params")?,
            roles,
            tolerance: json(texts, "tol")?,
            scale: texts
                .contains_key("scale_value")
                .then(|| json(texts, "scale_value"))
                .transpose()?,
            tensors,
        })
    }

    /// `family/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.family, self.name)
    }

    /// A tensor of any role; what computes outputs takes inputs only, through a `Reader`.
    pub(super) fn tensor(&self, name: &str) -> Option<&Array> {
        self.tensors.get(name)
    }
}

fn json<T: serde::de::DeserializeOwned>(
    texts: &HashMap<String, String>,
    key: &str,
) -> Result<T, String> {
    let text = texts
        .get(key)
        .ok_or_else(|| format!("its __metadata__ has no `{key}`"))?;
    serde_json::from_str(text).map_err(|error| format!("`{key}` in its __metadata__: {error}"))
}

/// The elements of a tensor, for the element types that cases have.
fn values(dtype: Dtype, bytes: &[u8]) -> Option<Values> {
    use bytemuck::pod_collect_to_vec as collect;
    Some(match dtype {
        Dtype::F32 => Values::Real(collect(bytes)),
        Dtype::F16 => Values::Real(
            collect::<u8, half::f16>(bytes)
                .into_iter()
                .map(half::f16::to_f32)
                .collect(),
        ),
        Dtype::BF16 => Values::Real(
            collect::<u8, half::bf16>(bytes)
                .into_iter()
                .map(half::bf16::to_f32)
                .collect(),
        ),
        Dtype::I32 => Values::Integer(
            collect::<u8, i32>(bytes)
                .into_iter()
                .map(i64::from)
                .collect(),
        ),
        Dtype::I64 => Values::Integer(collect(bytes)),
        Dtype::BOOL => Values::Boolean(bytes.iter().map(|&byte| byte != 0).collect()),
        _ => return None,
    })
}

/// The cases that the library carries, sorted by family and name.
///
/// # Errors
/// [`Error::File`] when one is damaged.
pub fn carried() -> Result<Vec<Case>> {
    let mut cases = CARRIED
        .dirs()
        .flat_map(Dir::files)
        .filter_map(|file| {
            let (family, name) = names(file.path())?;
            Some(Case::parse(&family, &name, file.contents()))
        })
        .collect::<Result<Vec<_>>>()?;
    sort(&mut cases);
    Ok(cases)
}

/// The cases of a folder, sorted by family and name: `<family>/<case>.safetensors` in it, and
/// files right in it, whose family is the folder.
///
/// # Errors
/// [`Error::File`] when the folder or a case cannot be read, or there is no case.
pub fn load(folder: &Path) -> Result<Vec<Case>> {
    let root = folder
        .canonicalize()
        .map_err(|error| Error::file(folder, format!("{error}; check the path")))?;
    if root.is_file() {
        return Err(Error::file(
            folder,
            "is a file, not a folder of cases; give the folder that holds it",
        ));
    }
    let mut cases = Vec::new();
    for entry in entries(&root)? {
        let files = if entry.is_dir() {
            entries(&entry)?
        } else {
            vec![entry]
        };
        for file in files {
            if let Some((family, name)) = names(&file) {
                let bytes = fs::read(&file).map_err(|error| Error::file(&file, error))?;
                cases.push(Case::parse(&family, &name, &bytes)?);
            }
        }
    }
    if cases.is_empty() {
        return Err(Error::file(
            folder,
            "holds no case; give a folder of <family>/<case>.safetensors",
        ));
    }
    sort(&mut cases);
    Ok(cases)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(|error| Error::file(folder, error))
}

/// Family and name of a case by its path; none for other files.
fn names(path: &Path) -> Option<(String, String)> {
    (path.extension()? == "safetensors").then_some(())?;
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    Some((text(path.parent()?.file_name()?), text(path.file_stem()?)))
}

fn sort(cases: &mut [Case]) {
    cases.sort_by(|a, b| (&a.family, &a.name).cmp(&(&b.family, &b.name)));
}
