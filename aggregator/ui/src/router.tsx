// Which page an address means, and links that change it without loading.

import { useSyncExternalStore, type AnchorHTMLAttributes, type MouseEvent } from "react";

export type Route =
  | { page: "events" }
  | { page: "pods" }
  | { page: "pod"; node: string; namespace: string; pod: string }
  | { page: "nodes" }
  | { page: "node"; node: string }
  | { page: "missing" };

export function parseRoute(path: string): Route {
  let parts: string[];
  try {
    parts = path.split("/").slice(1).map(decodeURIComponent);
  } catch {
    return { page: "missing" };
  }
  if (parts.length > 1 && parts[parts.length - 1] === "") parts.pop();
  const [first, ...rest] = parts;
  const [a, b, c] = rest;
  if (first === "" && rest.length === 0) return { page: "events" };
  if (first === "pods" && rest.length === 0) return { page: "pods" };
  if (first === "nodes" && rest.length === 0) return { page: "nodes" };
  if (first === "nodes" && a !== undefined && rest.length === 1) return { page: "node", node: a };
  if (first === "pods" && a !== undefined && b !== undefined && c !== undefined && rest.length === 3) {
    return { page: "pod", node: a, namespace: b, pod: c };
  }
  return { page: "missing" };
}

export function podPath(node: string, namespace: string, pod: string): string {
  return `/pods/${[node, namespace, pod].map(encodeURIComponent).join("/")}`;
}

export function nodePath(node: string): string {
  return `/nodes/${encodeURIComponent(node)}`;
}

/** The page of a subject: of the pod, or of the node where both names are empty; null where it is not known. */
export function subjectPath(node: string, namespace: string | undefined, pod: string | undefined): string | null {
  if (namespace === undefined || pod === undefined) return null;
  return pod === "" ? nodePath(node) : podPath(node, namespace, pod);
}

const listeners = new Set<() => void>();

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  window.addEventListener("popstate", listener);
  return () => {
    listeners.delete(listener);
    window.removeEventListener("popstate", listener);
  };
}

export function navigate(to: string, how: "push" | "replace" = "push"): void {
  if (to === window.location.pathname + window.location.search) return;
  const turned = new URL(to, window.location.href).pathname !== window.location.pathname;
  if (how === "push") window.history.pushState(null, "", to);
  else window.history.replaceState(null, "", to);
  if (turned) window.scrollTo(0, 0);
  for (const listener of listeners) listener();
}

/** `[path, search]` of the present address. */
export function useAddress(): [string, string] {
  const path = useSyncExternalStore(subscribe, () => window.location.pathname);
  const search = useSyncExternalStore(subscribe, () => window.location.search);
  return [path, search];
}

export function Link({ href, onClick, ...rest }: AnchorHTMLAttributes<HTMLAnchorElement> & { href: string }) {
  const follow = (event: MouseEvent<HTMLAnchorElement>) => {
    onClick?.(event);
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    navigate(href);
  };
  return <a href={href} onClick={follow} {...rest} />;
}
