//! `GET /api/v1/events/stats`: how many events there were, over time and by one field.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use sonde_common::time::Span;
use utoipa::{IntoParams, ToSchema};

use super::{event_filter, events};
use crate::http::AppState;
use crate::http::params::{Params, micros};
use crate::http::problem::{ApiResult, Problem};
use crate::store::query::stats::Field;
use crate::store::query::{Micros, rfc3339};

/// Steps of a chart that are made unless asked otherwise, and at most.
const STEPS: i64 = 60;
const MAX_STEPS: i64 = 2000;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct StatsParams {
    /// Beginning, inclusive: RFC 3339, `now`, or a time ago such as `-15m`. Default: an hour before the end.
    from: Option<String>,
    /// End, exclusive. Default: now.
    to: Option<String>,
    /// What to count by: `type` (the default), `reason`, `probe`, `protocol`, `node`, `namespace`, `pod`, `workload`,
    /// `interface`, `comm`, `state`, `direction`, `saddr`, `daddr`, `sport`, `dport`.
    by: Option<String>,
    /// Length of a step, such as `10s`. Default: about a sixtieth of the span.
    step: Option<String>,
    /// Values in `top`, 1 to 1000, by default 20.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventStats {
    #[schema(format = DateTime)]
    from: String,
    #[schema(format = DateTime)]
    to: String,
    /// Length of a step in seconds.
    step_s: f64,
    /// Every step of the span, those without events too.
    buckets: Vec<Bucket>,
    /// Most frequent values first.
    top: Vec<Top>,
    total: i64,
}

#[derive(Debug, Serialize, ToSchema)]
struct Bucket {
    /// Beginning of the step.
    #[schema(format = DateTime)]
    time: String,
    count: i64,
}

#[derive(Debug, Serialize, ToSchema)]
struct Top {
    /// Null: events that have no value there.
    value: Option<String>,
    count: i64,
}

/// Counts of events over time and by one field
#[utoipa::path(
    get,
    path = "/api/v1/events/stats",
    tag = "events",
    params(StatsParams, event_filter::EventFilterParams),
    responses((status = 200, body = EventStats), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn stats(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<EventStats> {
    let params = Params::read_both::<StatsParams, event_filter::EventFilterParams>(query.as_deref())?;
    let filter = event_filter::read(&params)?;
    let by = params.choice("by", &Field::ALL)?;
    let top = params.number("limit", 20, 1000)?;
    let (from, to) = params.range(events::DEFAULT_RANGE)?;
    let step = match params.span("step")? {
        None => nice_step(to - from),
        Some(step) => micros(step),
    };
    let steps = (to - from - 1) / step + 1;
    if steps > MAX_STEPS {
        return Err(Problem::bad(
            "step",
            format!("`step`: gives {steps} steps, at most {MAX_STEPS} are made"),
        ));
    }
    // Steps begin at whole multiples of their length, so that a chart that moves on keeps its bars.
    let first = from - from.rem_euclid(step);
    let counts = state
        .store
        .event_counts(&filter, (from, to), (first, step), by, top)
        .await?;
    let mut buckets: Vec<Bucket> = (0..=(to - 1 - first) / step)
        .map(|i| Bucket {
            time: rfc3339(first + i * step),
            count: 0,
        })
        .collect();
    for (i, n) in &counts.steps {
        if let Some(bucket) = usize::try_from(*i).ok().and_then(|i| buckets.get_mut(i)) {
            bucket.count += n;
        }
    }
    Ok(Json(EventStats {
        from: rfc3339(from),
        to: rfc3339(to),
        step_s: step as f64 / 1e6,
        total: buckets.iter().map(|b| b.count).sum(),
        buckets,
        top: counts
            .top
            .into_iter()
            .map(|(value, count)| Top {
                value: value.filter(|v| !v.is_empty() || is_place(by)),
                count,
            })
            .collect(),
    }))
}

/// There an empty word is the node itself, not a missing one.
fn is_place(by: Field) -> bool {
    matches!(by, Field::Namespace | Field::Pod)
}

/// The shortest of the steps people expect that gives no more than the usual number.
fn nice_step(range: Micros) -> Micros {
    const SECONDS: [u64; 17] = [
        1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400,
    ];
    let days = || micros(Span::from_secs(86_400)) * (range / (micros(Span::from_secs(86_400)) * STEPS) + 1);
    let steps = SECONDS.map(|s| micros(Span::from_secs(s)));
    steps
        .into_iter()
        .find(|step| range / step <= STEPS)
        .unwrap_or_else(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_that_people_expect() {
        for (range, step) in [
            (1, 1),
            (60, 1),
            (61, 2),
            (900, 15),
            (3600, 60),
            (86_400, 1800),
            (7 * 86_400, 21_600),
            (3650 * 86_400, 61 * 86_400),
        ] {
            assert_eq!(nice_step(range * 1_000_000), step * 1_000_000, "{range} s");
        }
    }
}
