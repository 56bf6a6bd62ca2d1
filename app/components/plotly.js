// The library, fetched from this app when there is something to draw, once for all components of the page: put in front
// of the script of each that draws with it.
function library(address) {
  if (!window.srpoPlotly)
    window.srpoPlotly = new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = address;
      script.onload = () => done(window.Plotly);
      script.onerror = () => { window.srpoPlotly = null; failed(new Error("plotly.min.js was not served")); };
      document.head.append(script);
    });
  return window.srpoPlotly;
}
