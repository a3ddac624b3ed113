/**
 * Symbols of icons.svg, beside this version of the scripts.
 */
const SVG = 'http://www.w3.org/2000/svg'
const SHEET = new URL('../icons.svg', import.meta.url).pathname

/** A new icon; decoration, so hidden from assistive technology. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg')
  svg.setAttribute('class', 'icon')
  svg.setAttribute('aria-hidden', 'true')
  const use = document.createElementNS(SVG, 'use')
  use.setAttribute('href', `${SHEET}#${name}`)
  svg.append(use)
  return svg
}

/** Lets the first icon under el show another symbol. */
export function setIcon(el, name) {
  el.querySelector('use')?.setAttribute('href', `${SHEET}#${name}`)
}
