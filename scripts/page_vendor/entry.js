// Everything that the page imports from others, as one module.
import cytoscape from "cytoscape";
import dagre from "cytoscape-dagre";
import htm from "htm";
import { Component, createRef, Fragment, h, render } from "preact";
import { useCallback, useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import uPlot from "uplot";

cytoscape.use(dagre);
const html = htm.bind(h);

export { Component, createRef, cytoscape, Fragment, h, html, render, uPlot };
export { useCallback, useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState };
