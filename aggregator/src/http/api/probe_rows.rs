//! `GET /api/v1/probes/{probe}/rows`: readings of one probe over time, for charts.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use serde::{Serialize, Serializer};
use sonde_common::time::Span;
use utoipa::{IntoParams, ToSchema};

use crate::http::AppState;
use crate::http::params::{Params, now_micros};
use crate::http::problem::{ApiResult, Problem};
use crate::store::catalogue::{Column, Definition};
use crate::store::query::rfc3339;
use crate::store::query::rolled::Source;
use crate::store::query::rows::{Reading, Rows, RowsQuery, Series};

const DEFAULT_RANGE: Span = Span::from_secs(900);
/// Values in an answer: about 20 MB of JSON.
const MAX_VALUES: usize = 1_000_000;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct RowsParams {
    /// This and the two below: repeatable, `!` negates. Empty namespace and pod: the node itself.
    node: Option<Vec<String>>,
    namespace: Option<Vec<String>>,
    pod: Option<Vec<String>>,
    /// Beginning, inclusive: RFC 3339, `now`, or a time ago such as `-15m`. Default: a quarter of an hour before the end.
    from: Option<String>,
    /// End, exclusive. Default: now.
    to: Option<String>,
    /// Columns that are wanted, by default all; repeatable.
    column: Option<Vec<String>>,
    /// Points of a series, 1 to 5000, by default 300. Of each part of the span the last reading is shown. Of a long span,
    /// or one that is older than readings are kept, rollups are: see `source` in the answer.
    #[param(minimum = 1, maximum = 5000)]
    max_points: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProbeRows {
    probe: String,
    #[schema(format = DateTime)]
    from: String,
    #[schema(format = DateTime)]
    to: String,
    /// `rows`: readings; `1m`, `1h`: rollups of that length, each point at the end of its part. There, counters and
    /// histograms stand at what they rose by since `from`, and gauges at their average.
    source: &'static str,
    series: Vec<RowSeries>,
}

#[derive(Debug, Serialize, ToSchema)]
struct RowSeries {
    node: String,
    /// Empty: the node itself.
    namespace: String,
    pod: String,
    labels: BTreeMap<String, String>,
    /// By column: `[unix milliseconds, value]` in the column's unit, counters as they stood. Null: the kernel had none.
    /// For a histogram the value is an array: the count of each bucket, not cumulated, the last without bound; then the
    /// sum.
    #[schema(value_type = std::collections::HashMap<String, Vec<Vec<serde_json::Value>>>)]
    columns: BTreeMap<String, Vec<(i64, Value)>>,
}

#[derive(Debug)]
struct Value(Reading);

/// Readings of one probe over time
#[utoipa::path(
    get,
    path = "/api/v1/probes/{probe}/rows",
    tag = "probes",
    params(("probe" = String, Path, description = "Name of the probe"), RowsParams),
    responses((status = 200, body = ProbeRows), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn rows(
    State(state): State<AppState>,
    Path(probe): Path<String>,
    RawQuery(query): RawQuery,
) -> ApiResult<ProbeRows> {
    let params = Params::read::<RowsParams>(query.as_deref())?;
    let (from, to) = params.range(DEFAULT_RANGE)?;
    let points = params.number("max_points", 300, 5000)?;
    let Some(row) = state.store.probe(&probe).await? else {
        let shown: String = probe.chars().take(100).collect();
        let detail = format!("there is no probe `{shown}`; /api/v1/probes has those that there are");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let columns = columns(&params, &row.definition)?;
    let step = ((to - from) / i64::from(points)).max(1);
    let source = state.store.source(from, to, step, now_micros());
    let query = RowsQuery {
        node: params.words("node"),
        namespace: params.words("namespace"),
        pod: params.words("pod"),
        from,
        to,
        step: step.max(source.span()),
        max_values: MAX_VALUES,
    };
    let store = &state.store;
    let read = match source {
        Source::Readings => store.probe_rows(&row.name, &row.definition, &columns, &query).await?,
        _ => {
            store
                .rolled_rows(&row.name, &row.definition, &columns, &query, source)
                .await?
        }
    };
    let series = match read {
        Rows::Read(series) => series,
        Rows::TooMany => {
            let detail = format!("the answer has more than {MAX_VALUES} values: ask for fewer pods, columns or points");
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
    };
    Ok(Json(ProbeRows {
        probe: row.name,
        from: rfc3339(from),
        to: rfc3339(to),
        source: match source {
            Source::Readings => "rows",
            Source::Minutes => "1m",
            Source::Hours => "1h",
        },
        series: series
            .into_iter()
            .map(|s| shown(s, &row.definition, &columns))
            .collect(),
    }))
}

fn columns<'a>(params: &Params, definition: &'a Definition) -> Result<Vec<&'a Column>, Problem> {
    let mut wanted = Vec::new();
    for name in params.all("column") {
        let Some(column) = definition.columns.iter().find(|c| c.name == name) else {
            let known: Vec<_> = definition.columns.iter().map(|c| c.name.as_str()).collect();
            let detail = format!("`column={name}`: expected one of {}", known.join(", "));
            return Err(Problem::bad("column", detail));
        };
        if !wanted.iter().any(|held: &&Column| held.name == name) {
            wanted.push(column);
        }
    }
    Ok(if wanted.is_empty() {
        definition.columns.iter().collect()
    } else {
        wanted
    })
}

fn shown(series: Series, definition: &Definition, columns: &[&Column]) -> RowSeries {
    let names = definition.labels.iter().map(|l| l.name.clone());
    let millis = series.times.iter().map(|t| t.div_euclid(1000));
    let points = |readings: Vec<Reading>| millis.clone().zip(readings.into_iter().map(Value)).collect();
    RowSeries {
        node: series.node,
        namespace: series.namespace,
        pod: series.pod,
        labels: names.zip(series.labels).collect(),
        columns: columns
            .iter()
            .map(|c| c.name.clone())
            .zip(series.columns.into_iter().map(points))
            .collect(),
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Reading::Absent => serializer.serialize_none(),
            Reading::Number(number) => Plain(*number).serialize(serializer),
            Reading::Histogram(values) => serializer.collect_seq(values.iter().map(|v| Plain(*v))),
        }
    }
}

/// Whole numbers without a point, as they were counted.
struct Plain(f64);

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const EXACT: f64 = (1_u64 << 53) as f64;
        if self.0.fract() == 0.0 && self.0.abs() <= EXACT {
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}
