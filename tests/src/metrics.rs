//! Reading what `/metrics` says: Prometheus' text format.

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Takes each sample line; comments and what cannot be read are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect();
        Self { samples }
    }

    /// The sum over all samples of this name that have these labels; 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// Like [`sum`](Self::sum), as a whole number: counters of rows and records are.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are whole and not negative"
    )]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.sum(name, labels).round() as u64
    }

    /// Whether there is a sample of this name at all.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.with(name, &[]).next().is_some()
    }

    fn with<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| {
                    sample.labels.iter().any(|(found, content)| found == key && content == value)
                })
        })
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        None => (series, Vec::new()),
        Some((name, labels)) => (name, labels.strip_suffix('}')?.split("\",").filter_map(label).collect()),
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// `name="content"`; the last one keeps its closing quote, the others lost it to the split.
fn label(text: &str) -> Option<(String, String)> {
    let (name, content) = text.split_once("=\"")?;
    Some((name.to_owned(), content.strip_suffix('"').unwrap_or(content).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let metrics = Metrics::parse(
            "# HELP rows_total rows\n\
             # TYPE rows_total counter\n\
             rows_total{pipeline=\"a\",table=\"x\"} 3\n\
             rows_total{pipeline=\"a\",table=\"y\"} 4\n\
             rows_total{pipeline=\"b\",table=\"x\"} 5\n\
             rows_total_seconds 0.25\n\
             # EOF\n",
        );
        assert_eq!(metrics.count("rows_total", &[]), 12);
        assert_eq!(metrics.count("rows_total", &[("pipeline", "a")]), 7);
        assert_eq!(metrics.count("rows_total", &[("pipeline", "a"), ("table", "y")]), 4);
        assert_eq!(metrics.count("nothing", &[]), 0);
        assert!(metrics.has("rows_total_seconds"));
    }
}
