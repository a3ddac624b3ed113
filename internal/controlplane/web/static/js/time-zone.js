import { t } from './words.js'

/** Names the time zone in which the page writes times. */
class TimeZone extends HTMLElement {
  connectedCallback() {
    const minutes = -new Date().getTimezoneOffset()
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
    const hours = `${minutes < 0 ? '−' : '+'}${Math.floor(Math.abs(minutes) / 60)}${minutes % 60 ? `:${String(Math.abs(minutes) % 60).padStart(2, '0')}` : ''}`
    this.textContent = minutes === 0 ? t('Times are UTC') : t('Times are %s (UTC%s)', zone, hours)
  }
}
customElements.define('time-zone', TimeZone)
