//! The page: a template with the data in it as JSON.

use serde::Serialize;

use super::{adapter::Report, encoder::Layer, meaning};
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("../demo.html");
/// Where the data go in the template.
const PLACE: &str = "{{data}}";
/// Weights are whole numbers of this size on the page.
const UNIT: f32 = 1e-5;

#[derive(Serialize)]
struct Data<'a> {
    version: &'static str,
    sources: Vec<&'a str>,
    meaning: [(&'static str, String); 4],
    adapters: &'a [Report],
    /// The adapter that computed the weights; none when all failed.
    drawn: Option<&'a Report>,
    unit: f32,
    passages: &'a [Vec<String>],
    layers: Vec<u32>,
    heads: &'a [usize],
    maps: Vec<Map>,
}

#[derive(Serialize)]
struct Map {
    layer: u32,
    passage: usize,
    head: usize,
    /// Rows are queries, columns keys, in units of [`UNIT`].
    weights: Vec<Vec<u32>>,
}

/// The page with the figures of all adapters, and the weights of the first that passed.
pub(super) fn html(layers: &[Layer], heads: &[usize], reports: &[Report]) -> Result<String> {
    let drawn = reports.iter().find(|report| report.passed());
    let maps = drawn.map_or_else(Vec::new, |report| maps(layers, heads, &report.weights));
    let data = Data {
        version: env!("CARGO_PKG_VERSION"),
        sources: layers.iter().map(|layer| layer.source.as_str()).collect(),
        meaning: meaning(),
        adapters: reports,
        drawn,
        unit: UNIT,
        passages: layers.first().map_or(&[], |layer| &layer.tokens),
        layers: layers.iter().map(|layer| layer.number).collect(),
        heads,
        maps,
    };
    let json = serde_json::to_string(&data).map_err(|error| Error::file("the page", error))?;
    Ok(TEMPLATE.replacen(PLACE, &inert(&json), 1))
}

fn maps(layers: &[Layer], heads: &[usize], weights: &[Vec<f32>]) -> Vec<Map> {
    let mut maps = Vec::new();
    for (layer, weights) in layers.iter().zip(weights) {
        for passage in 0..layer.lens.len() {
            maps.extend(heads.iter().map(|&head| {
                Map {
                    layer: layer.number,
                    passage,
                    head,
                    weights: layer
                        .map(weights, passage, head)
                        .map(|row| row.iter().map(|w| (w / UNIT).round() as u32).collect())
                        .collect(),
                }
            }));
        }
    }
    maps
}

/// JSON that can stand in a script element: nothing in it can end the element or open a comment.
/// `<` occurs in strings only, where an escape means the same.
fn inert(json: &str) -> String {
    json.replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_has_one_place_for_the_data() {
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
    }

    #[test]
    fn data_cannot_leave_their_element() {
        let hostile = "</script><script>alert(1)</script><!--";
        let mut layer = Layer::first().unwrap();
        layer.tokens[0][1] = hostile.into();
        let failed = Report {
            adapter: hostile.into(),
            driver: String::new(),
            backend: "Vulkan".into(),
            reason: Some("device: lost".into()),
            figures: None,
            weights: Vec::new(),
        };
        let page = html(&[layer], &[0], &[failed]).unwrap();
        let start = page.find("type=\"application/json\"").unwrap();
        let start = start + page[start..].find('>').unwrap() + 1;
        let end = start + page[start..].find("</script>").unwrap();
        let data: serde_json::Value = serde_json::from_str(&page[start..end]).unwrap();
        assert_eq!(data["passages"][0][1], hostile);
        assert_eq!(data["adapters"][0]["adapter"], hostile);
        assert_eq!(data["drawn"], serde_json::Value::Null);
        assert!(!page[start..end].contains('<'));
    }
}
