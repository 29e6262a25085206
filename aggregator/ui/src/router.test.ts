import { expect, it } from "vitest";

import { nodePath, parseRoute, podPath, subjectPath } from "./router";

it("a path names a page", () => {
  expect(parseRoute("/")).toEqual({ page: "events" });
  expect(parseRoute("/pods")).toEqual({ page: "pods" });
  expect(parseRoute("/pods/")).toEqual({ page: "pods" });
  expect(parseRoute("/nodes/a")).toEqual({ page: "node", node: "a" });
  for (const path of ["/x", "/pods/a", "/pods/a/b", "/pods/a/b/c/d", "/nodes/a/b", "/nodes/%"]) {
    expect(parseRoute(path), path).toEqual({ page: "missing" });
  }
});

it("names with any character come back from the path", () => {
  for (const name of ["a.b", "ü /?#%", "..x"]) {
    expect(parseRoute(podPath(name, name, name))).toEqual({ page: "pod", node: name, namespace: name, pod: name });
    expect(parseRoute(nodePath(name))).toEqual({ page: "node", node: name });
  }
});

it("a subject without a pod is the node, and one that is not known has no page", () => {
  expect(subjectPath("n", "", "")).toBe("/nodes/n");
  expect(subjectPath("n", "s", "p")).toBe("/pods/n/s/p");
  expect(subjectPath("n", undefined, undefined)).toBeNull();
});
