//! Tensors in safetensors and .npy files.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use npyz::{NpyFile, NpyHeader, Order, TypeChar, WriterBuilder};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};

use crate::{DType, Error, Result};

/// The elements of a tensor from a file, in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Elements {
    /// Numbers, whatever precision the file has, as f32.
    Real(Vec<f32>),
    /// A mask.
    Bool(Vec<bool>),
    /// Whole numbers.
    Integer(Vec<i64>),
}

/// A tensor from a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileTensor {
    pub shape: Vec<u64>,
    pub elements: Elements,
    /// The element type that the file has.
    pub stored: Stored,
}

/// An element type that can be read from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    F16,
    Bf16,
    F32,
    F64,
    Bool,
    I32,
    I64,
    U32,
}

const READABLE: &str = "f16, bf16, f32 and f64 numbers, bool masks, and i32, i64 and u32 lengths \
                        can be read";

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bool => "bool",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U32 => "u32",
        })
    }
}

/// How a file holds tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Any number of named tensors.
    Safetensors,
    /// One tensor, known by the name of the file.
    Npy,
}

impl Format {
    /// The format that a file's extension names.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        match extension.to_lowercase().as_str() {
            "safetensors" => Ok(Self::Safetensors),
            "npy" => Ok(Self::Npy),
            "" => Err(Error::file(
                path,
                "has no extension; name it .safetensors or .npy",
            )),
            other => Err(Error::file(
                path,
                format!(".{other} files are not known; use .safetensors or .npy"),
            )),
        }
    }
}

/// A file with tensors, read into memory.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    format: Format,
    bytes: Vec<u8>,
}

impl TensorFile {
    pub fn open(path: &Path) -> Result<Self> {
        let format = Format::of(path)?;
        let bytes = fs::read(path)
            .map_err(|error| Error::file(path, format!("{error}; check the path")))?;
        Ok(Self {
            path: path.to_owned(),
            format,
            bytes,
        })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(match self.format {
            Format::Npy => {
                let stem = self.path.file_stem().unwrap_or_default();
                vec![stem.to_string_lossy().into_owned()]
            }
            Format::Safetensors => {
                let file = self.safetensors()?;
                let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
                names.sort_unstable();
                names
            }
        })
    }

    /// A tensor by its name; the one of a .npy file whatever its name.
    pub fn tensor(&self, name: &str) -> Result<FileTensor> {
        match self.format {
            Format::Npy => read_npy(&self.bytes).map_err(|message| self.error(message)),
            Format::Safetensors => {
                let file = self.safetensors()?;
                let view = file.tensor(name).map_err(|_| {
                    let there = self.names().unwrap_or_default().join(", ");
                    self.error(format!("has no tensor `{name}`; it has: {there}"))
                })?;
                read_view(&view).map_err(|message| self.error(format!("`{name}`: {message}")))
            }
        }
    }

    fn safetensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| {
            self.error(match error {
                SafeTensorError::HeaderTooSmall
                | SafeTensorError::InvalidHeaderLength
                | SafeTensorError::MetadataIncompleteBuffer => format!(
                    "{} bytes that are not a whole safetensors file ({error}); it may be \
                     truncated: fetch or write it again",
                    self.bytes.len()
                ),
                _ => format!(
                    "is not a safetensors file ({error}); save it with safetensors' save_file"
                ),
            })
        })
    }

    fn error(&self, message: impl fmt::Display) -> Error {
        Error::file(&self.path, message)
    }
}

fn read_view(view: &TensorView<'_>) -> Result<FileTensor, String> {
    let data = view.data();
    let (stored, elements) = match view.dtype() {
        Dtype::F16 => (
            Stored::F16,
            Elements::Real(decode(data, |b| f16::from_le_bytes(b).to_f32())),
        ),
        Dtype::BF16 => (
            Stored::Bf16,
            Elements::Real(decode(data, |b| bf16::from_le_bytes(b).to_f32())),
        ),
        Dtype::F32 => (
            Stored::F32,
            Elements::Real(decode(data, f32::from_le_bytes)),
        ),
        Dtype::F64 => (Stored::F64, narrow(decode(data, f64::from_le_bytes))?),
        Dtype::BOOL => (Stored::Bool, Elements::Bool(decode(data, |[b]| b != 0))),
        Dtype::I32 => (
            Stored::I32,
            Elements::Integer(decode(data, |b| i32::from_le_bytes(b).into())),
        ),
        Dtype::I64 => (
            Stored::I64,
            Elements::Integer(decode(data, i64::from_le_bytes)),
        ),
        Dtype::U32 => (
            Stored::U32,
            Elements::Integer(decode(data, |b| u32::from_le_bytes(b).into())),
        ),
        other => return Err(format!("elements are {other:?}; {READABLE}")),
    };
    Ok(FileTensor {
        shape: view.shape().iter().map(|&len| len as u64).collect(),
        elements,
        stored,
    })
}

fn decode<const N: usize, T>(data: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks().0.iter().copied().map(value).collect()
}

/// f64 rounded to f32, as long as no finite number becomes infinite.
fn narrow(data: Vec<f64>) -> Result<Elements, String> {
    data.into_iter()
        .map(|wide| {
            let number = wide as f32;
            if wide.is_finite() && !number.is_finite() {
                Err(format!(
                    "{wide:e} is past the range of f32; scale the tensor"
                ))
            } else {
                Ok(number)
            }
        })
        .collect::<Result<_, _>>()
        .map(Elements::Real)
}

fn read_npy(bytes: &[u8]) -> Result<FileTensor, String> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => cut_off(error),
        _ => not_npy(error),
    };
    npy_header_is_plain(bytes)?;
    let mut rest = bytes;
    let header = NpyHeader::from_reader(&mut rest).map_err(unreadable)?;
    let npyz::DType::Plain(scalar) = header.dtype() else {
        return Err(format!(
            "elements are {}; {READABLE}",
            header.dtype().descr()
        ));
    };
    let stored = match (scalar.type_char(), scalar.size_field()) {
        (TypeChar::Float, 2) => Stored::F16,
        (TypeChar::Float, 4) => Stored::F32,
        (TypeChar::Float, 8) => Stored::F64,
        (TypeChar::Bool, _) => Stored::Bool,
        (TypeChar::Int, 4) => Stored::I32,
        (TypeChar::Int, 8) => Stored::I64,
        (TypeChar::Uint, 4) => Stored::U32,
        _ => return Err(format!("elements are {scalar}; {READABLE}")),
    };
    // The order of a tensor with one axis is both.
    if header.order() == Order::Fortran && header.shape().len() > 1 {
        return Err(format!(
            "shape {:?} is in Fortran order; save it with numpy.ascontiguousarray",
            header.shape()
        ));
    }
    let size = scalar.num_bytes().unwrap_or(1) as u64;
    let (there, takes) = (rest.len() as u64, header.len().saturating_mul(size));
    if there != takes {
        let found = format!(
            "{there} bytes of data where {scalar} {:?} takes {takes}",
            header.shape()
        );
        return Err(if there < takes {
            cut_off(found)
        } else {
            not_npy(found)
        });
    }
    let shape = header.shape().to_vec();
    let file = NpyFile::with_header(header, rest);
    let elements = match stored {
        Stored::F16 => file
            .into_vec::<f16>()
            .map(|data| Elements::Real(data.into_iter().map(f16::to_f32).collect())),
        Stored::F32 => file.into_vec().map(Elements::Real),
        Stored::F64 => {
            return Ok(FileTensor {
                shape,
                elements: narrow(file.into_vec().map_err(unreadable)?)?,
                stored,
            });
        }
        Stored::Bool => file.into_vec().map(Elements::Bool),
        Stored::I32 => file
            .into_vec::<i32>()
            .map(|data| Elements::Integer(data.into_iter().map(i64::from).collect())),
        Stored::I64 => file.into_vec().map(Elements::Integer),
        Stored::U32 => file
            .into_vec::<u32>()
            .map(|data| Elements::Integer(data.into_iter().map(i64::from).collect())),
        Stored::Bf16 => return Err("bf16 has no .npy type".into()),
    }
    .map_err(unreadable)?;
    Ok(FileTensor {
        shape,
        elements,
        stored,
    })
}

/// What is wrong with a .npy file that ends too early.
fn cut_off(found: impl fmt::Display) -> String {
    format!("is not a whole .npy file ({found}); it may be truncated: write it again")
}

/// What is wrong with a file that is no array of numbers, however long.
fn not_npy(found: impl fmt::Display) -> String {
    format!("is not a .npy file of numbers ({found}); save it with numpy.save")
}

/// Whether a .npy header is of the simple kind that plain arrays have. The parser behind it takes
/// any Python literal, and a hostile one (deeply nested, or with sizes past 64 bits) ends the
/// program instead of giving an error.
fn npy_header_is_plain(bytes: &[u8]) -> Result<(), String> {
    const MAGIC: &[u8] = b"\x93NUMPY";
    if !bytes.starts_with(&MAGIC[..MAGIC.len().min(bytes.len())]) {
        return Err(not_npy("it does not begin as one"));
    }
    let text = npy_header(bytes).ok_or_else(|| cut_off("the header is not all there"))?;
    let known = |b: &u8| b.is_ascii_alphanumeric() || b"{}()[],:'\"<>|=_ \n".contains(b);
    if !text.iter().all(known) {
        return Err(not_npy(
            "the header holds characters that no array of numbers needs",
        ));
    }
    // One for the dictionary, one for the shape.
    if text.iter().filter(|b| b"([{".contains(b)).count() > 2 {
        return Err(not_npy(
            "the header describes a structure, not an array of numbers",
        ));
    }
    // All numbers in the header: the shape, and the element's size.
    text.split(|b| !b.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .try_fold(1u64, |product, digits| {
            let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
            product.checked_mul(number.max(1))
        })
        .map(|_| ())
        .ok_or_else(|| not_npy("the sizes in the header are past 64 bits"))
}

/// The text of the header, where the file has all of it.
fn npy_header(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = match bytes.get(6)? {
        1 => {
            let (length, rest) = bytes.get(8..)?.split_first_chunk()?;
            (u16::from_le_bytes(*length).into(), rest)
        }
        _ => {
            let (length, rest) = bytes.get(8..)?.split_first_chunk()?;
            (u32::from_le_bytes(*length), rest)
        }
    };
    rest.get(..usize::try_from(length).ok()?)
}

/// The elements of a tensor to write.
#[derive(Debug, Clone)]
pub(super) enum Numbers {
    /// Written as f32, or rounded to f16.
    Real(Vec<f32>),
    /// Written as u32.
    Whole(Vec<u32>),
}

/// A tensor to write: f32, f16 or u32 elements.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub name: &'static str,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub data: Numbers,
}

/// Writes tensors in the format that the file's extension names; a .npy file takes one.
pub(super) fn write(path: &Path, outputs: &[Output]) -> Result<()> {
    let bytes = match (Format::of(path)?, outputs) {
        (Format::Safetensors, _) => safetensors_bytes(outputs),
        (Format::Npy, [output]) => npy_bytes(output).map_err(|error| error.to_string()),
        (Format::Npy, _) => Err(format!(
            "a .npy file holds one tensor, and there are {}; write a .safetensors file",
            outputs.len()
        )),
    };
    bytes
        .and_then(|bytes| fs::write(path, bytes).map_err(|error| error.to_string()))
        .map_err(|message| Error::file(path, message))
}

fn safetensors_bytes(outputs: &[Output]) -> Result<Vec<u8>, String> {
    let data: Vec<Vec<u8>> = outputs
        .iter()
        .map(|output| match (&output.data, output.dtype) {
            (Numbers::Real(data), DType::F16) => encode(data, |x| f16::from_f32(x).to_le_bytes()),
            (Numbers::Real(data), _) => encode(data, f32::to_le_bytes),
            (Numbers::Whole(data), _) => encode(data, u32::to_le_bytes),
        })
        .collect();
    let views = outputs
        .iter()
        .zip(&data)
        .map(|(output, data)| {
            let dtype = match (&output.data, output.dtype) {
                (Numbers::Whole(_), _) => Dtype::U32,
                (Numbers::Real(_), DType::F16) => Dtype::F16,
                (Numbers::Real(_), _) => Dtype::F32,
            };
            let shape = output.shape.iter().map(|&len| len as usize).collect();
            TensorView::new(dtype, shape, data).map(|view| (output.name, view))
        })
        .collect::<Result<Vec<_>, _>>();
    views
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|error| error.to_string())
}

fn encode<T: Copy, const N: usize>(data: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    data.iter().flat_map(|&x| bytes(x)).collect()
}

fn npy_bytes(output: &Output) -> std::io::Result<Vec<u8>> {
    fn all<T: npyz::AutoSerialize>(
        shape: &[u64],
        data: impl Iterator<Item = T>,
    ) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut writer = npyz::WriteOptions::new()
            .default_dtype()
            .shape(shape)
            .writer(&mut bytes)
            .begin_nd()?;
        writer.extend(data)?;
        writer.finish()?;
        Ok(bytes)
    }
    match (&output.data, output.dtype) {
        (Numbers::Real(data), DType::F16) => {
            all(&output.shape, data.iter().copied().map(f16::from_f32))
        }
        (Numbers::Real(data), _) => all(&output.shape, data.iter().copied()),
        (Numbers::Whole(data), _) => all(&output.shape, data.iter().copied()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(name: &str, bytes: Vec<u8>) -> TensorFile {
        let path = PathBuf::from(name);
        TensorFile {
            format: Format::of(&path).unwrap(),
            path,
            bytes,
        }
    }

    const REALS: [f32; 6] = [0.5, -1.0, 2.0, 65504.0, f32::NEG_INFINITY, 0.0];

    fn output(dtype: DType) -> Output {
        Output {
            name: "o",
            dtype,
            shape: vec![2, 3],
            data: Numbers::Real(REALS.to_vec()),
        }
    }

    fn npy(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn message(result: Result<FileTensor>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        for (dtype, stored) in [(DType::F32, Stored::F32), (DType::F16, Stored::F16)] {
            let output = output(dtype);
            let want = FileTensor {
                shape: output.shape.clone(),
                elements: Elements::Real(REALS.to_vec()),
                stored,
            };
            let bytes = safetensors_bytes(std::slice::from_ref(&output)).unwrap();
            let read = file("a.safetensors", bytes);
            assert_eq!(read.names().unwrap(), ["o"]);
            assert_eq!(read.tensor("o").unwrap(), want);
            let read = file("dir/o.npy", npy_bytes(&output).unwrap());
            assert_eq!(read.names().unwrap(), ["o"]);
            assert_eq!(read.tensor("any").unwrap(), want);
        }
    }

    #[test]
    fn every_type_of_npy_is_decoded() {
        let cases: [(&str, &[u8], Elements); 8] = [
            ("<f4", &1.5f32.to_le_bytes(), Elements::Real(vec![1.5])),
            (">f4", &1.5f32.to_be_bytes(), Elements::Real(vec![1.5])),
            ("<f8", &1.5f64.to_le_bytes(), Elements::Real(vec![1.5])),
            (
                "<f2",
                &f16::from_f32(1.5).to_le_bytes(),
                Elements::Real(vec![1.5]),
            ),
            ("|b1", &[1], Elements::Bool(vec![true])),
            ("<i4", &(-3i32).to_le_bytes(), Elements::Integer(vec![-3])),
            ("<i8", &7i64.to_le_bytes(), Elements::Integer(vec![7])),
            (
                "<u4",
                &u32::MAX.to_le_bytes(),
                Elements::Integer(vec![i64::from(u32::MAX)]),
            ),
        ];
        for (descr, data, want) in cases {
            let read = file("x.npy", npy(descr, "False", "(1,)", data)).tensor("x");
            assert_eq!(read.unwrap().elements, want, "{descr}");
        }
    }

    #[test]
    fn every_type_of_safetensors_is_decoded() {
        let cases: [(Dtype, &[u8], Elements); 7] = [
            (Dtype::F64, &2.5f64.to_le_bytes(), Elements::Real(vec![2.5])),
            (
                Dtype::BF16,
                &bf16::from_f32(2.5).to_le_bytes(),
                Elements::Real(vec![2.5]),
            ),
            (
                Dtype::F16,
                &f16::from_f32(2.5).to_le_bytes(),
                Elements::Real(vec![2.5]),
            ),
            (Dtype::BOOL, &[1], Elements::Bool(vec![true])),
            (
                Dtype::I32,
                &(-3i32).to_le_bytes(),
                Elements::Integer(vec![-3]),
            ),
            (Dtype::I64, &7i64.to_le_bytes(), Elements::Integer(vec![7])),
            (Dtype::U32, &7u32.to_le_bytes(), Elements::Integer(vec![7])),
        ];
        for (dtype, data, want) in cases {
            let view = TensorView::new(dtype, vec![1], data).unwrap();
            let bytes = safetensors::serialize([("x", view)], None).unwrap();
            let read = file("a.safetensors", bytes).tensor("x");
            assert_eq!(read.unwrap().elements, want, "{dtype:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let read = |descr, order, shape, data: &[u8]| {
            message(file("x.npy", npy(descr, order, shape, data)).tensor("x"))
        };
        let text = read("<f4", "True", "(1, 1)", &[0; 4]);
        assert!(text.contains("x.npy") && text.contains("Fortran") && text.contains("ascontig"));
        let text = read("<c8", "False", "(1,)", &[0; 8]);
        assert!(
            text.contains("<c8") && text.contains("can be read"),
            "{text}"
        );
        let text = read("<f4", "False", "(2, 3)", &[0; 20]);
        assert!(
            text.contains("20 bytes") && text.contains("takes 24"),
            "{text}"
        );
        let text = read("<f8", "False", "(1,)", &1e300f64.to_le_bytes());
        assert!(text.contains("1e300") && text.contains("f32"), "{text}");
        let long = read("<f4", "False", "(1,)", &[0; 8]);
        let object = read("|O", "False", "(1,)", &[0; 8]);
        let text = message(file("x.npy", b"1.0 2.0 3.0\n".to_vec()).tensor("x"));
        let torn = message(file("x.npy", b"\x93NUMPY\x01\x00\x76\x00{".to_vec()).tensor("x"));
        let none = message(file("x.npy", Vec::new()).tensor("x"));
        for (text, truncated) in [
            (&long, false),
            (&object, false),
            (&text, false),
            (&torn, true),
            (&none, true),
        ] {
            assert_eq!(text.contains("truncated"), truncated, "{text}");
        }
        assert!(text.contains("numpy.save") && long.contains("numpy.save"));
        let huge = read("<f4", "False", "(4294967296, 4294967296)", &[]);
        assert!(huge.contains("64 bits"), "{huge}");
        let nested = read("<f4", "False", &"(".repeat(9000), &[]);
        assert!(nested.contains("structure"), "{nested}");

        let whole = safetensors_bytes(&[output(DType::F32)]).unwrap();
        let text = message(file("a.safetensors", whole.clone()).tensor("k"));
        assert!(
            text.contains("no tensor `k`") && text.contains("it has: o"),
            "{text}"
        );
        for cut in [0, 7, 20, whole.len() - 1] {
            let text = message(file("a.safetensors", whole[..cut].to_vec()).tensor("o"));
            assert!(text.contains("truncated"), "{text}");
        }
        let text = message(file("a.safetensors", b"a pickled model".to_vec()).tensor("o"));
        assert!(
            text.contains("save_file") && !text.contains("truncated"),
            "{text}"
        );
        let view = TensorView::new(Dtype::U8, vec![1], &[1]).unwrap();
        let bytes = safetensors::serialize([("x", view)], None).unwrap();
        let text = message(file("a.safetensors", bytes).tensor("x"));
        assert!(text.contains("`x`") && text.contains("U8"), "{text}");

        for name in ["q.pt", "q"] {
            let text = Format::of(Path::new(name)).unwrap_err().to_string();
            assert!(text.contains(".safetensors or .npy"), "{text}");
        }
        let text = write(
            Path::new("o.npy"),
            &[output(DType::F32), output(DType::F32)],
        );
        assert!(text.unwrap_err().to_string().contains("holds one tensor"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Whatever a file holds, reading it gives tensors or an error.
        #[test]
        fn damaged_files_never_panic(
            npy_format in any::<bool>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            insert in prop::collection::vec(any::<u8>(), 0..4),
            at in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
            cut_it in any::<bool>(),
        ) {
            let (name, mut bytes) = if npy_format {
                ("x.npy", npy_bytes(&output(DType::F16)).unwrap())
            } else {
                ("a.safetensors", safetensors_bytes(&[output(DType::F16)]).unwrap())
            };
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let place = at.index(bytes.len());
            bytes.splice(place..place, insert);
            if cut_it {
                bytes.truncate(cut.index(bytes.len()));
            }
            let file = file(name, bytes);
            for name in file.names().unwrap_or_default() {
                let _ = file.tensor(&name);
            }
        }
    }
}
