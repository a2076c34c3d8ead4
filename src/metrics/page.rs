//! The answer to `/metrics`: Prometheus' text format 0.0.4, by the encoder of the `prometheus` crate. It is used for
//! that alone: values stay where they are counted, and each answer is made afresh.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as Buckets, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder as _, TextEncoder};

use super::family::{Label, PerLabel};
use super::histogram::Times;

/// Families of metrics, in the order in which they are shown. Names begin with `doorward_` and are in base units.
#[derive(Debug, Default)]
pub(crate) struct Page(Vec<MetricFamily>);

/// The labels of one value.
pub(crate) type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Page {
    fn family(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        // A family without a value is none.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    /// What only grows; its name ends with `_total`.
    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counter_of(name, help, value as f64);
    }

    /// The same, of what is no number of things.
    pub(crate) fn counter_of(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, MetricType::COUNTER, vec![counted(&[], value)]);
    }

    /// A counter for each value of a label.
    pub(crate) fn counters<L: Label>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        all: &PerLabel<L>,
    ) {
        self.counters_by(name, help, all, |value| vec![(label, value.label())]);
    }

    /// The same with labels of its own.
    pub(crate) fn counters_by<'a, L: Label>(
        &mut self,
        name: &str,
        help: &str,
        all: &PerLabel<L>,
        labels: impl Fn(L) -> Labels<'a>,
    ) {
        let metrics = all.each().map(|(value, count)| counted(&labels(value), count as f64)).collect();
        self.family(name, help, MetricType::COUNTER, metrics);
    }

    /// A counter for each of some words.
    pub(crate) fn counter_for_each(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        all: impl IntoIterator<Item = (&'static str, u64)>,
    ) {
        let metrics = all.into_iter().map(|(word, count)| counted(&[(label, word)], count as f64)).collect();
        self.family(name, help, MetricType::COUNTER, metrics);
    }

    /// What goes up and down.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [(Vec::new(), value)]);
    }

    /// Yes is 1, no is 0.
    pub(crate) fn flag(&mut self, name: &str, help: &str, is_so: bool) {
        self.gauge(name, help, if is_so { 1.0 } else { 0.0 });
    }

    /// A gauge for each set of labels, which must differ.
    pub(crate) fn gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        let gauge = |(labels, value): (Labels<'_>, f64)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_label(pairs(&labels));
            metric.set_gauge(gauge);
            metric
        };
        self.family(name, help, MetricType::GAUGE, all.into_iter().map(gauge).collect());
    }

    /// Times, in seconds.
    pub(crate) fn histogram(&mut self, name: &str, help: &str, times: &Times) {
        let bucket = |(bound_ms, within): &(u64, u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound_ms as f64 / 1000.0);
            bucket.set_cumulative_count(*within);
            bucket
        };
        let mut buckets = Buckets::default();
        buckets.set_bucket(times.within_ms.iter().map(bucket).collect());
        buckets.set_sample_count(times.count);
        buckets.set_sample_sum(times.sum.as_secs_f64());
        let mut metric = Metric::from_label(Vec::new());
        metric.set_histogram(buckets);
        self.family(name, help, MetricType::HISTOGRAM, vec![metric]);
    }

    /// The text, or what the encoder has against it.
    pub(crate) fn text(&self) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0, &mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }
}

fn counted(labels: &[(&'static str, &str)], value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_counter(counter);
    metric
}

fn pairs(labels: &[(&'static str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&'static str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut page = Page::default();
        page.gauges("doorward_x", "what it is", [(vec![("subject", "a\"} 1\nb\\")], 2.5)]);
        page.gauges("doorward_none", "nothing", []);
        let text = String::from_utf8(page.text().unwrap()).unwrap();
        assert_eq!(
            text,
            "# HELP doorward_x what it is\n# TYPE doorward_x gauge\ndoorward_x{subject=\"a\\\"} 1\\nb\\\\\"} 2.5\n"
        );
    }
}
