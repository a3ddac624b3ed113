import { TaskElement } from './element.js'
import { speed } from './format.js'
import { t } from './words.js'

const EVERY = 10_000 // a figure for each, as the server keeps them (api.TrendEvery)
const LENGTH = 30

/** The speed of an install in the last minutes, as a line (spark.go). */
class SpeedTrend extends TaskElement {
  static types = ['progress']
  #values = []
  #at = 0 // of the newest

  connectedCallback() {
    super.connectedCallback()
    this.#values = this.getAttribute('values').split(' ').filter(Boolean).map(Number)
    if (this.#values.length) this.#at = Date.now()
  }

  draw({ details }) {
    const now = Date.now()
    const stretches = this.#at ? Math.min(Math.floor((now - this.#at) / EVERY), LENGTH) : 1
    if (stretches < 1) return
    this.#at = now
    for (let i = 1; i < stretches; i++) this.#values.push(0)
    this.#values.push(details?.bytes_per_second ?? 0)
    this.#values = this.#values.slice(-LENGTH)
    if (this.#values.length > 1) this.#show()
  }

  #show() {
    const svg = this.querySelector('svg')
    const { width, height } = svg.viewBox.baseVal
    const most = Math.max(...this.#values)
    const x = (i) => ((width * (LENGTH - this.#values.length + i)) / (LENGTH - 1)).toFixed(1)
    const y = (n) => (height - 1 - (n / Math.max(most, 1)) * (height - 2)).toFixed(1)
    const line = `M${this.#values.map((n, i) => `${x(i)} ${y(n)}`).join(' L')}`
    const [area, path] = svg.querySelectorAll('path')
    path.setAttribute('d', line)
    area.setAttribute('d', `${line} L${width} ${height} L${x(0)} ${height}z`)
    svg.setAttribute('aria-label', t('Speed of the last minutes, up to %s', speed(most)))
    svg.removeAttribute('hidden')
  }
}
customElements.define('speed-trend', SpeedTrend)
