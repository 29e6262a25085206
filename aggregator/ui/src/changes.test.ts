import { describe, expect, it } from "vitest";

import type { Change } from "./api";
import { changeDoubt, changeKinds, changeMove, changeSubject, kindWords } from "./changes";

function change(more: Partial<Change> = {}): Change {
  return { id: 1, time: "2026-01-31T10:00:10.000000Z", kind: "pod_deleted", ...more };
}

describe("a change in words", () => {
  it("says what it is about, the narrowest thing first", () => {
    const pod = { namespace: "shop", pod: "web-1", workload: "web", workload_kind: "Deployment", node: "n1" };
    expect(changeSubject(change(pod))).toBe("shop/web-1");
    expect(changeSubject(change({ namespace: "shop", service: "web" }))).toBe("service shop/web");
    expect(changeSubject(change({ namespace: "shop", workload: "web", workload_kind: "Deployment" }))).toBe("Deployment shop/web");
    expect(changeSubject(change({ node: "n1" }))).toBe("node n1");
    expect(changeSubject(change())).toBe("");
  });

  it("says from what to what, or the one side that there is", () => {
    expect(changeMove(change({ before: "ready", after: "not ready" }))).toBe("ready → not ready");
    expect(changeMove(change({ after: "revision 1 (web-1)" }))).toBe("revision 1 (web-1)");
    expect(changeMove(change({ before: "ClusterIP 10.96.0.1" }))).toBe("was ClusterIP 10.96.0.1");
    expect(changeMove(change())).toBe("");
  });

  it("says how far back it may have been where nobody saw it", () => {
    expect(changeDoubt(change())).toBe("");
    expect(changeDoubt(change({ since: "2026-01-31T10:00:05.000000Z" }))).toBe("or up to 5s before");
    expect(changeDoubt(change({ since: "junk" }))).toBe("");
  });
});

describe("the kinds of many changes", () => {
  it("are counted, most frequent first, and cut", () => {
    const kinds = ["rollout", "pod_deleted", "pod_created", "pod_created", "pod_restarted", "node_added"];
    expect(changeKinds(kinds.map((kind) => change({ kind })))).toBe("pod created 2, rollout, pod deleted, pod restarted, …");
    expect(changeKinds([])).toBe("");
    expect(kindWords("node_ready_changed")).toBe("node ready changed");
  });
});
