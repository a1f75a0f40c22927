#!/usr/bin/env bash
# Makes src/trimtab/report/plotly/plotly-trimtab.min.js.xz: plotly.js with the four kinds of traces that the pages draw. Needs node, npm and xz.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd); work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
version=4.1.1
npm install --silent --ignore-scripts --no-audit --no-fund --prefix . "plotly.js@$version" esbuild@0.28.2
cat > entry.js <<'JS'
var Plotly = require("plotly.js/lib/core");  // scatter is in it
Plotly.register([require("plotly.js/lib/bar"), require("plotly.js/lib/heatmap"), require("plotly.js/lib/contour")]);
module.exports = Plotly;
JS
npx esbuild entry.js --bundle --minify --format=iife --global-name=Plotly --define:global=window --define:define.amd=false \
  --alias:stream=stream-browserify --target=es2016 --legal-comments=eof --outfile=plotly-trimtab.min.js --log-level=warning \
  --banner:js="/* plotly.js (scatter, bar, heatmap, contour - minified) v$version, Copyright Plotly, Inc., MIT licence */"
node - plotly-trimtab.min.js <<'JS'
// as the packages that plotly publishes: without the texts that describe attributes
const fs = require("fs"), file = process.argv[2], whole = fs.readFileSync(file, "utf8");
const text = String.raw`"(?:[^"\\]|\\.)*"`, list = String.raw`\[(?:${text},?)*\]\.join\("[^"]*"\)`;
fs.writeFileSync(file, whole.replace(new RegExp(`\\bdescription:(?:${list}|${text})(?=[,}])`, "g"), 'description:""'));
JS
xz -9e plotly-trimtab.min.js
cp plotly-trimtab.min.js.xz "$root/src/trimtab/report/plotly/"
